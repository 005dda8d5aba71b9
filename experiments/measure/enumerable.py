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

from experiments import build
from experiments.configured import constraints as build_constraints
from experiments.plan import Policy
from qempo_jax import call_text
from qempo_jax import methods
from qempo_jax.errors import InputError
from qempo_jax.testing import EnumerablePolicy
from qempo_jax.token_stats import TokenStats
from qempo_jax.train import online_step

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
    raise InputError(
      f"enumerable.num_prompts={settings.num_prompts} exceeds the {len(prompts)} pairs there are: lower it"
    )

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


# Keys in which runs that are trained side by side may differ; of `method`, only numbers among its settings.
FREE = (
  "seed",
  "sampling.temperature",  # of what is measured; training draws from the enumeration
  *(f"constraints.{name}.{key}" for name in ("quality", "kl") for key in ("bound", "margin", "start")),
)


def same_method(configs: Sequence) -> bool:
  """True where the methods of these configs differ only in numbers among their settings."""
  parsed = map(_parsed, map(build_constraints.label, configs))
  return len({(path, tuple(numbers), tuple(sorted(rest.items()))) for path, numbers, rest in parsed}) == 1


def train(configs: Sequence, problem: Problem):
  """Trains runs of one method side by side.

  Args:
    configs: one complete config a run; they may differ in what `FREE` names.
    problem: the toy.

  Returns:
    The last TrainState of all, stacked along a first axis.
  """
  on_toy = Policy(None, problem.params, None, (), None)
  plans = [build.plan(config, on_toy) for config in configs]
  if any(plan.sampling.transform.acts or plan.sampling.stop_strings for plan in plans):
    raise InputError("an enumerable policy is sampled at its temperature alone: leave the other keys of sampling alone")
  first = plans[0]
  path, _, fixed = _parsed(first.label)
  make, objective = methods.table()[path], first.objective
  states = [plan.first_state(problem.params) for plan in plans]
  aims = lambda plan: {name: c.bound for name, c in plan.objective.constraints.items() if c.bound is not None}
  numbers = [(_parsed(plan.label)[1], aims(plan)) for plan in plans]
  stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(x, jnp.float32) for x in leaves]), *trees)
  features = objective.method.features(problem.space.tokens, problem.space.mask)
  reference = problem.log_probs(problem.params)

  def run(state, numbers):
    of_method, bounds = numbers
    constraints = {
      name: dataclasses.replace(constraint, bound=bounds.get(name))
      for name, constraint in objective.constraints.items()
    }
    own = dataclasses.replace(objective, method=make(**of_method, **fixed), constraints=constraints)
    settings = own, first.optimizers, first.sampling.group_size, features
    step = lambda state, index: (_step(state, index, problem, reference, *settings), None)
    return jax.lax.scan(step, state, jnp.arange(first.steps))[0]

  states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
  return jax.jit(jax.vmap(run))(states, stack(numbers))


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


def _step(state, index, problem, ref_log_probs, objective, optimizers, group_size, features):
  """`online_step.policy_and_duals`, with samples drawn from the enumeration."""
  key = jax.random.fold_in(state.rng, index)
  prompts = len(problem.prompts)
  row = jnp.arange(prompts)[:, None]
  now = jax.lax.stop_gradient(jnp.sum(problem.token_log_probs(state.params), axis=-1))
  cumulative = jnp.cumsum(jnp.exp(now), axis=-1)
  drawn = jax.random.uniform(key, (prompts, group_size)) * cumulative[:, -1:]
  chosen = jnp.sum(cumulative[:, None, :] <= drawn[:, :, None], axis=-1)
  fresh = jnp.ones(chosen.shape, bool)
  square = lambda of_all: jnp.asarray(of_all)[chosen[:, :, None], chosen[:, None, :]]
  batch = online_step.GroupBatch(
    packed=None,
    mask=jnp.asarray(problem.space.mask)[chosen],
    rewards={"reward": jnp.asarray(problem.rewards)[row, chosen]},
    fresh=fresh,
    replayed=~fresh,
    features={name: square(of_all) for name, of_all in features.items()},
  )

  def score(params, batch):
    del batch  # the prompts are all of them, always
    log_probs = problem.token_log_probs(params)
    given = EnumerablePolicy(problem.space, init=None, token_log_probs=lambda log_probs: log_probs)
    return TokenStats(log_probs[row, chosen], jax.vmap(given.token_entropies)(log_probs)[row, chosen])

  return online_step.policy_and_duals(
    state, batch, ref_log_probs[row, chosen], score=score, objective=objective, optimizers=optimizers
  )[0]


def _parsed(method: str) -> tuple[str, dict[str, float], dict[str, Any]]:
  """(the method's name, numbers among its settings, its other settings)."""
  path, _, settings = call_text.parse(method, "method")
  numbers = {key: value for key, value in settings.items() if type(value) in (int, float)}
  return path, dict(sorted(numbers.items())), {key: value for key, value in settings.items() if key not in numbers}
