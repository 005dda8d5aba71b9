"""The online step on policies whose every response is enumerated: the library's own losses and multipliers, no sampler.

One `lax.scan` over the steps, many runs side by side under `vmap`; figures are exact sums over all responses.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import itertools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import builders
from qempo_jax import duals
from qempo_jax import group_transforms
from qempo_jax import train_state
from qempo_jax import train_step
from qempo_jax.errors import InputError
from qempo_jax.testing import EnumerablePolicy
from qempo_jax.token_stats import TokenStats

BAD_REWARD = 0.6  # no response but the good ones, whose reward is 1, has more


class Problem(NamedTuple):
  """P prompts over one space of N responses of at most T tokens.

  Attributes:
    answer: prompt -> the policy that answers it; all share their params.
    space: the responses.
    prompts: [P, 2] tokens.
    params: of the reference, where training starts.
    rewards: [P, N].
  """

  answer: Callable[[Any], EnumerablePolicy]
  space: Any
  prompts: np.ndarray
  params: Any
  rewards: np.ndarray

  def token_log_probs(self, params) -> jax.Array:
    """[P, N, T], nats."""
    return jax.vmap(lambda prompt: self.answer(prompt).token_log_probs(params))(jnp.asarray(self.prompts))

  def log_probs(self, params, temperature: float = 1.0) -> jax.Array:
    """[P, N], nats, every next-token distribution at a temperature."""

    def cooled(token_log_probs):
      logits = self.space.next_tokens(token_log_probs) / temperature
      scaled = jax.nn.log_softmax(jnp.where(self.space.mask[..., None], logits, 0.0), axis=-1)
      return jnp.take_along_axis(scaled, self.space.tokens[..., None], axis=-1)[..., 0]

    tokens = jax.vmap(cooled)(self.token_log_probs(params))
    return jnp.sum(jnp.where(self.space.mask, tokens, 0.0), axis=-1)


def make_problem(settings) -> Problem:
  """The toy of a frontier config's group `enumerable`.

  A response's score sums a weight for each of its tokens by place, partly shared by all prompts; the best `num_good` are worth 1,
  the others 0.6 of the logistic function of their score.

  Raises:
    InputError: more prompts than there are pairs of tokens.
  """
  prompts = np.array(list(itertools.product(range(1, settings.vocab_size), repeat=2)))[: settings.num_prompts]
  if len(prompts) < settings.num_prompts:
    raise InputError(f"enumerable.num_prompts={settings.num_prompts} exceeds the {len(prompts)} pairs there are: lower it")

  def answer(prompt):
    return EnumerablePolicy.transformer(
        settings.vocab_size,
        settings.max_length,
        prompt=prompt,
        width=settings.width,
        init_stddev=settings.init_stddev,
    )

  one = answer(prompts[0])
  space = one.space
  rng = np.random.default_rng(settings.seed)
  places = (space.max_length, space.vocab_size)
  weights = rng.normal(size=places) + 0.5 * rng.normal(size=(len(prompts), *places))
  scores = np.sum(weights[:, np.arange(space.max_length), space.tokens] * space.mask, axis=-1)
  good = np.argsort(np.argsort(-scores, axis=-1), axis=-1) < settings.num_good
  rewards = np.where(good, 1.0, BAD_REWARD / (1 + np.exp(-scores))).astype(np.float32)
  return Problem(answer, space, prompts, one.init(jax.random.key(settings.seed)), rewards)


# Keys in which runs that are trained side by side may differ.
FREE = (
    "seed",
    "sampling.temperature",  # of what is measured; training draws from the enumeration
    "duals.quality.initial",
    "duals.kl.initial",
    *(f"objective.{key}" for key in (
        "min_reward", "margin", "max_kl", "token_entropy_weight", "transform_strength", "good_reward"
    )),
)  # fmt: skip


def train(configs: Sequence, problem: Problem):
  """Trains runs of one method side by side.

  Args:
    configs: one complete config a run; they may differ in what `FREE` names.
    problem: the toy.

  Returns:
    The last TrainState of all, stacked along a first axis.
  """
  static, optimizers = builders.objective(configs[0]), builders.optimizer_pair(configs[0])
  states = [builders.initial_state(config, problem.params, optimizers) for config in configs]
  numbers = [_numbers(builders.objective(config)) for config in configs]
  stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
  similarities = group_transforms.token_similarities(problem.space.tokens, problem.space.mask)
  settings = configs[0].sampling.group_size, similarities
  reference = problem.log_probs(problem.params)

  def run(state, numbers):
    objective = _with_numbers(static, numbers)
    step = lambda state, index: (_step(state, index, problem, reference, objective, optimizers, *settings), None)
    return jax.lax.scan(step, state, jnp.arange(configs[0].steps))[0]

  return jax.jit(jax.vmap(run))(stack(states), stack(numbers))


def figures(problem: Problem, log_probs, draws: Sequence[int]) -> dict[str, np.ndarray]:
  """Exact figures of a policy, [P] each.

  Args:
    problem: the toy.
    log_probs: [P, N] of the policy, nats.
    draws: every k for pass@k and the expected number of different good responses among k samples.
  """
  log_p = np.asarray(log_probs, np.float64)
  p = np.exp(log_p)
  good = problem.rewards >= 1
  mass = np.sum(p * good, axis=-1)
  share = np.where(good, p, 0.0) / mass[:, None]
  inside = -np.sum(share * np.log(np.where(share > 0, share, 1.0)), axis=-1)
  reference = np.asarray(problem.log_probs(problem.params), np.float64)
  found = {
      "reward": np.sum(p * problem.rewards, axis=-1),
      "entropy": -np.sum(p * np.where(p > 0, log_p, 0.0), axis=-1),
      "kl": np.sum(p * (np.where(p > 0, log_p, 0.0) - reference), axis=-1),
      "length": p @ problem.space.lengths,
      "truncation": p @ problem.space.truncated,
      "good": mass,
      "effective_answers": np.exp(inside),
  }
  for k in draws:
    found[f"pass@{k}"] = 1 - (1 - mass) ** k
    found[f"distinct@{k}"] = np.sum(np.where(good, 1 - (1 - p) ** k, 0.0), axis=-1)
  return found


def _step(state, index, problem, ref_log_probs, objective, optimizers, group_size, similarities):
  """`train_step.online_step`, with samples drawn from the enumeration."""
  key = jax.random.fold_in(state.rng, index)
  prompts = len(problem.prompts)
  row = jnp.arange(prompts)[:, None]
  multipliers = duals.multipliers(state.dual_params)

  def loss_fn(params):
    log_probs = problem.token_log_probs(params)
    cumulative = jnp.cumsum(jnp.exp(jax.lax.stop_gradient(jnp.sum(log_probs, axis=-1))), axis=-1)
    drawn = jax.random.uniform(key, (prompts, group_size)) * cumulative[:, -1:]
    chosen = jnp.sum(cumulative[:, None, :] <= drawn[:, :, None], axis=-1)
    given = EnumerablePolicy(problem.space, init=None, token_log_probs=lambda log_probs: log_probs)
    stats = TokenStats(log_probs[row, chosen], jax.vmap(given.token_entropies)(log_probs)[row, chosen])
    fresh = jnp.ones(chosen.shape, bool)
    batch = train_step.GroupBatch(
        packed=None,
        mask=jnp.asarray(problem.space.mask)[chosen],
        rewards=jnp.asarray(problem.rewards)[row, chosen],
        fresh=fresh,
        replayed=~fresh,
        similarities=jnp.asarray(similarities)[chosen[:, :, None], chosen[:, None, :]],
    )
    ref = ref_log_probs[row, chosen]
    losses = jax.vmap(train_step.group_loss, in_axes=(0, 0, 0, None, None))(stats, ref, batch, multipliers, objective)
    return jnp.mean(losses), (stats, ref, batch)

  (loss, (stats, ref, batch)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
  moved, told = train_state.move_policy(state, gradient, loss, optimizers.policy)
  measured = train_step.measure(stats, ref, batch)
  next_state, _ = train_step.move_multipliers(moved, measured, objective, optimizers.dual)
  return train_state.unless(told["skipped"], next_state, moved)


def _numbers(objective) -> dict[str, float]:
  """The numbers of an objective that differ between runs compiled together."""
  named = {name: getattr(objective, name) for name in ("min_reward", "max_kl", "token_entropy_weight")}
  named |= {"strength": objective.transform.strength, "good_reward": objective.transform.good_reward}
  return {name: jnp.asarray(value, jnp.float32) for name, value in named.items() if value is not None}


def _with_numbers(objective, numbers):
  transform = objective.transform._replace(strength=numbers["strength"], good_reward=numbers["good_reward"])
  named = {name: value for name, value in numbers.items() if name not in ("strength", "good_reward")}
  return dataclasses.replace(objective, transform=transform, **named)
