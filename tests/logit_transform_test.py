"""The policy's transform of logits: against transformers' processors, between sampler and scorer, and its gradient."""

import functools
import itertools

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax import constraints as constraint_lib
from qempo_jax import packing
from qempo_jax import response_trees
from qempo_jax import token_stats
from qempo_jax.constraints import Group
from qempo_jax.logit_transform import PLAIN
from qempo_jax.logit_transform import LogitTransform
from qempo_jax.methods import qempo
from qempo_jax.methods.group_loss import group_loss
from qempo_jax.methods.method import Prices
from qempo_jax.models import parameters
from qempo_jax.sampling import sampler
from tests import scored
from tests.loops import toy
from tests.sampling import sampler_test

STOPS = (2, 5)
TRANSFORMS = {
  "top_k": LogitTransform(top_k=7),
  "top_p": LogitTransform(top_p=0.8),
  "min_p": LogitTransform(min_p=0.05),
  "all": LogitTransform(
    top_k=40, top_p=0.9, min_p=0.02, min_length=3, stop_tokens=STOPS, bias=((4, 1.5), (2, 2.0), (9, -3.0))
  ),
  "top_p_tiny": LogitTransform(top_p=1e-6),
  "min_length": LogitTransform(min_length=3, stop_tokens=STOPS, bias=((2, 9.0),)),
}


def _logits(kind):
  rng = np.random.default_rng(3)
  logits = rng.normal(size=(64, 120)).astype(np.float32) * 3
  if kind == "ties":
    logits = np.round(logits)
  if kind == "extreme":
    logits *= np.logspace(-4, 3, len(logits), dtype=np.float32)[:, None]
    logits[:, 100:] = -np.inf
  return logits


def _theirs(transform, logits, temperature, length):
  torch = pytest.importorskip("torch")
  hf = pytest.importorskip("transformers")
  ids, scores = torch.zeros((len(logits), 4 + length), dtype=torch.int64), torch.tensor(logits)
  processors = [hf.TemperatureLogitsWarper(temperature)]  # those of `generate`, in its order
  if transform.min_length:
    stops = list(transform.stop_tokens)
    processors.insert(0, hf.MinNewTokensLengthLogitsProcessor(4, transform.min_length, stops, device="cpu"))
  if transform.bias:
    bias = {(token,): value for token, value in transform.bias}
    processors.insert(0, hf.SequenceBiasLogitsProcessor(bias))
  if transform.top_k:
    processors.append(hf.TopKLogitsWarper(transform.top_k))
  if transform.top_p < 1:
    processors.append(hf.TopPLogitsWarper(transform.top_p))
  if transform.min_p:
    processors.append(hf.MinPLogitsWarper(transform.min_p))
  for processor in processors:
    scores = processor(ids, scores)
  return scores.numpy()


@pytest.mark.parametrize("length", [2, 3])
@pytest.mark.parametrize("kind", ["random", "ties", "extreme"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_logits_are_those_of_transformers(name, kind, length):
  """On ties with the last kept token, top-p of transformers keeps some by the order of a sort; here all are kept."""
  transform, logits = TRANSFORMS[name], _logits(kind)
  ours = np.asarray(transform(jnp.asarray(logits), temperature=0.7, length=jnp.full(len(logits), length)))
  theirs = _theirs(transform, logits, 0.7, length)
  kept = np.isfinite(theirs)
  np.testing.assert_allclose(ours[kept], theirs[kept], rtol=1e-6)
  more = np.isfinite(ours) & ~kept
  if kind == "random" or transform.top_p == 1:
    assert not more.any()
  else:
    least = np.where(kept, theirs, np.inf).min(axis=-1)
    rows, _ = np.nonzero(more)
    np.testing.assert_allclose(ours[more], least[rows], rtol=1e-6)


def test_greedy_keeps_the_first_of_the_likeliest():
  logits = jnp.asarray([[1.0, 3.0, 3.0], [-jnp.inf, -1.0, 0.0]])
  found = LogitTransform(greedy=True)(logits, temperature=1.0, length=jnp.zeros(2))
  np.testing.assert_array_equal(found, [[-np.inf, 3, -np.inf], [-np.inf, -np.inf, 0]])


def test_the_plain_transform_leaves_the_programs_as_they_were():
  hidden, matrix, targets = jnp.ones((6, 4)), jnp.ones((9, 4)), jnp.zeros(6, jnp.int32)
  program = lambda **more: str(
    jax.make_jaxpr(lambda h: token_stats.token_stats(h, matrix, targets, temperature=0.7, chunk_size=3, **more))(hidden)
  )
  assert program() == program(transform=PLAIN, lengths=targets)
  assert program() != program(transform=TRANSFORMS["top_k"], lengths=targets)


def test_the_scorer_holds_few_tokens_logits_and_its_gradient_is_that_of_the_truncated_softmax(monkeypatch):
  monkeypatch.setattr(token_stats, "MAX_TRANSFORMED_LOGITS", 3 * 50)
  rng = np.random.default_rng(0)
  hidden, matrix = (
    jnp.asarray(rng.normal(size=(11, 8)), jnp.float32),
    jnp.asarray(rng.normal(size=(50, 8)), jnp.float32),
  )
  transform, lengths = LogitTransform(top_p=0.9, top_k=20, bias=((3, 0.5),)), jnp.zeros(11, jnp.int32)
  logits = hidden @ matrix.T
  kept = np.isfinite(transform(logits, temperature=0.8, length=lengths))
  targets = jnp.argmax(jnp.where(kept, rng.normal(size=kept.shape), -9), axis=-1)
  shift = jnp.zeros(50).at[3].set(0.5)

  def ours(hidden, matrix):
    options = {"temperature": 0.8, "chunk_size": 7, "transform": transform, "lengths": lengths}
    stats = token_stats.token_stats(hidden, matrix, targets, **options)
    return jnp.sum(stats.log_prob * weights[0] + stats.entropy * weights[1]), stats

  def plain(hidden, matrix):
    log_probs = jax.nn.log_softmax(jnp.where(kept, (hidden @ matrix.T + shift) / 0.8, -1e9))
    entropy = -jnp.sum(jnp.where(kept, jnp.exp(log_probs) * log_probs, 0.0), axis=-1)
    log_prob = jnp.take_along_axis(log_probs, targets[:, None], axis=-1)[:, 0]
    return jnp.sum(log_prob * weights[0] + entropy * weights[1]), token_stats.TokenStats(log_prob, entropy)

  weights = rng.normal(size=(2, 11))
  one, other = (jax.value_and_grad(f, (0, 1), has_aux=True)(hidden, matrix) for f in (ours, plain))
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-5), one, other)
  program = jax.make_jaxpr(jax.grad(lambda h: ours(h, matrix)[0]))(hidden)
  sizes = [v.aval.size for e in _equations(program.jaxpr) for v in e.outvars if v.aval.shape[-1:] == (50,)]
  assert max(sizes) == 3 * 50


def _equations(jaxpr):
  for equation in jaxpr.eqns:
    yield equation
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      yield from _equations(inner)


@pytest.mark.parametrize("name", ["top_p", "all"])
def test_scores_of_samples_are_the_samplers(name):
  params = parameters.init(jax.random.key(0), sampler_test.CONFIG, stddev=0.3)
  transform = TRANSFORMS[name]._replace(stop_tokens=sampler_test.SETTINGS["stop_tokens"])
  prompts = sampler_test._padded("left")
  draw = lambda transform: jax.device_get(
    sampler.sample_groups(
      params, sampler_test.CONFIG, prompts, jax.random.key(1), **sampler_test.SETTINGS, transform=transform
    )
  )
  rollout = draw(transform)
  stats = sampler_test._score(params, sampler_test.PROMPTS, rollout, transform=transform)
  np.testing.assert_allclose(stats.log_prob, rollout.log_probs, atol=1e-5)
  np.testing.assert_allclose(stats.entropy, rollout.entropies, atol=1e-5)
  plain = sampler_test._score(params, sampler_test.PROMPTS, rollout)
  assert (stats.log_prob.sum(-1) > plain.log_prob.sum(-1) + 0.1).mean() > 0.9  # truncation renormalises
  assert (rollout.mask.sum(-1) > transform.min_length).all()
  trees = [response_trees.tree_of([tuple(t[m]) for t, m in zip(*group)]) for group in zip(rollout.tokens, rollout.mask)]
  score = jax.jit(response_trees.score_trees, static_argnames=("config", "transform"))
  options = {"temperature": sampler_test.SETTINGS["temperature"], "transform": transform}
  of_trees = response_trees.log_probs(
    lambda batch: np.asarray(score(params, sampler_test.CONFIG, batch, **options)), sampler_test.PROMPTS, trees
  )
  np.testing.assert_allclose([found for found, _ in of_trees], stats.log_prob.sum(-1), atol=1e-4)


def test_greedy_samples_are_one_response_of_log_prob_0():
  params = parameters.init(jax.random.key(0), sampler_test.CONFIG, stddev=0.3)
  arguments = params, sampler_test.CONFIG, sampler_test._padded("left"), jax.random.key(1)
  rollout = sampler.sample_groups(*arguments, **sampler_test.SETTINGS, transform=LogitTransform(greedy=True))
  assert (np.asarray(rollout.tokens) == np.asarray(rollout.tokens)[:, :1]).all()
  assert not np.asarray(rollout.log_probs).any() and not np.asarray(rollout.entropies).any()


def test_the_expected_gradient_is_that_of_the_truncated_policys_lagrangian():
  """Every group of two is enumerated; finite differences of the objective find the kept sets anew."""
  transform, every = LogitTransform(top_p=0.6, top_k=3), toy.responses()
  params, reference = (parameters.init(jax.random.key(seed), toy.MODEL, stddev=0.6) for seed in (3, 4))
  prompts = [toy.ToyTokenizer().encode(prompt) for prompt in toy.PROMPTS]
  trees, prices = [response_trees.tree_of(every)] * 2, Prices(0.5, {"quality": 3.0, "kl": 0.7})
  rewards, constraints = toy.rewards(), {"quality": constraint_lib.reward_floor("reward", None)}
  constraints["kl"] = constraint_lib.kl_budget(None)
  score_trees = jax.jit(response_trees.score_trees, static_argnames=("config", "transform"))

  def log_probs(params):
    score = lambda batch: np.asarray(score_trees(params, toy.MODEL, batch, temperature=1.3, transform=transform))
    return np.array([found for found, _ in response_trees.log_probs(score, prompts, trees)])

  before = log_probs(params)
  assert np.isfinite(before).sum() < 0.2 * before.size

  def objective(params):
    log_pi = log_probs(params)
    pi, inside = np.exp(log_pi), np.isfinite(log_pi)
    np.testing.assert_allclose(pi.sum(-1), 1, atol=1e-5)
    assert (inside == np.isfinite(before)).all()
    terms = 3.0 * rewards + 0.7 * ref_log_probs - 1.2 * np.where(inside, log_pi, 0)
    return np.mean(np.sum(pi * terms, axis=-1)) / (0.5 + 3.0 + 0.7)

  support = [np.flatnonzero(np.isfinite(row)) for row in before]
  size = max(map(len, support))
  padded = [np.pad(found, (0, size - len(found)), mode="edge") for found in support]
  packed = packing.pack_groups(prompts, [[every[i] for i in found] for found in padded], bucket=64)
  mask = np.array([toy.SPACE.mask[found] for found in padded])
  chosen = lambda values: jnp.asarray([row[found] for row, found in zip(values, padded)], jnp.float32)
  weight = chosen(np.exp(before)) * np.array([np.arange(size) < len(found) for found in support])
  groups = jnp.asarray(list(itertools.product(range(size), repeat=2)))
  options = {"group_size": size, "max_length": toy.SPACE.max_length, "temperature": 1.3, "chunk_size": 64}
  of_reference = scored.score_groups(reference, toy.MODEL, packed, **options, transform=transform.untruncated())
  ref_log_probs = np.zeros(before.shape)
  np.put_along_axis(ref_log_probs, np.array(padded), np.sum(of_reference.log_prob, axis=-1), axis=-1)

  def expected_loss(params):
    stats = scored.score_groups(params, toy.MODEL, packed, **options, transform=transform)

    def of_prompt(stats, mask, rewards, ref, weight):
      def one(pair):
        yes = jnp.ones(2, bool)
        group = Group({"reward": rewards[pair]}, ref[pair], mask[pair], yes, ~yes, jnp.ones(2), {})
        picked = jax.tree.map(lambda x: x[pair], stats)
        return group_loss(picked, group, prices, constraints, qempo(), replay_weight=0.0) * jnp.prod(weight[pair])

      return jnp.sum(jax.vmap(one)(groups))

    return jnp.mean(jax.vmap(of_prompt)(stats, mask, chosen(rewards), chosen(ref_log_probs), weight))

  gradient = jax.jit(jax.grad(expected_loss))(params)
  rng = np.random.default_rng(0)
  for _ in range(2):
    direction = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)
    moved = lambda step, by=direction: jax.tree.map(lambda x, d: x + step * d, params, by)
    slope = (objective(moved(5e-4)) - objective(moved(-5e-4))) / 1e-3
    found = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, direction)))
    np.testing.assert_allclose(-found, slope, rtol=2e-2, atol=2e-3)
    assert abs(slope) > 0.02
