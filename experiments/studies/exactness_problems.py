"""Random problems whose optimum is known exactly: two prompts, one policy, one global pair of multipliers.

Vocabulary of 3 tokens with EOS, at most 4 of them: 31 responses to each prompt. The reference is a random policy of
the kind under study (that is also where training starts), rewards are Gaussian. The floor R lies between
max(E_uniform[r], E_q[r]) and the mean of the best rewards, and the KL budget between K*(R) and KL(pi_QEMPO || q), each
at a random position well inside, so that both constraints bind. For QEMPO-C, responses of reward `THRESHOLD` or more are
acceptable, the floor lies above E[r] at lambda = 0, and the coherence budget is the value at a random nu.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp

from qempo_jax import exact
from qempo_jax.testing import EnumerablePolicy

VOCAB_SIZE, MAX_LENGTH = 3, 4
PROMPTS = ((0, 1), (0, 2))
REWARD_SCALES = (1.0, 0.5)  # standard deviation of the rewards of each prompt
FLOOR_POSITIONS = (0.2, 0.4)
KL_POSITIONS = (0.3, 0.7)
THRESHOLD, NUS = 0.0, (0.5, 1.5)  # of QEMPO-C: tau; range of nu where it is learned


class PromptedPolicy(NamedTuple):
  """A policy for P prompts over one space of N responses of at most T tokens.

  Attributes:
    space: the responses.
    init: key -> params.
    token_log_probs: params -> [P, N, T], nats.
  """

  space: Any
  init: Callable[[Array], Any]
  token_log_probs: Callable[[Any], Array]


class Problem(NamedTuple):
  """One problem and its solution; a pytree, so that problems are trained side by side under `vmap`.

  Attributes:
    params: of the reference, where training starts.
    rewards: [P, N].
    ref_token_log_probs: [P, N, T], nats.
    min_reward: floor R of the mean over prompts.
    max_kl: budget K of the mean over prompts, nats; infinite where there is none.
    max_coherence: budget C of the mean over prompts, nats; infinite where there is none.
    quality_multiplier: exact lambda.
    kl_multiplier: exact mu; 0 without a KL budget.
    coherence_multiplier: exact nu; 0 without a coherence constraint.
    entropy: exact, mean over prompts, nats.
  """

  params: Any
  rewards: Array
  ref_token_log_probs: Array
  min_reward: Array
  max_kl: Array
  max_coherence: Array
  quality_multiplier: Array
  kl_multiplier: Array
  coherence_multiplier: Array
  entropy: Array

  @property
  def ref_log_probs(self) -> Array:
    """[P, N], nats."""
    return jnp.sum(self.ref_token_log_probs, axis=-1)

  @property
  def data_log_probs(self) -> Array:
    """[P, N] of the data: half from the reference, half uniform over all responses; nats."""
    uniform = -jnp.log(self.rewards.shape[-1])
    return jnp.logaddexp(self.ref_log_probs, uniform) - jnp.log(2.0)


def table_policy() -> PromptedPolicy:
  """Free logits for every prompt and prefix."""
  table = EnumerablePolicy.table(VOCAB_SIZE, MAX_LENGTH)
  init = lambda key: jax.vmap(table.init)(jax.random.split(key, len(PROMPTS)))
  return PromptedPolicy(table.space, init, jax.vmap(table.token_log_probs))


def transformer_policy() -> PromptedPolicy:
  """One tiny decoder, two layers of width 16, for both prompts."""
  answer = lambda prompt: EnumerablePolicy.transformer(VOCAB_SIZE, MAX_LENGTH, prompt=prompt, init_stddev=0.2)
  one = answer(PROMPTS[0])
  token_log_probs = lambda params: jax.vmap(lambda p: answer(p).token_log_probs(params))(jnp.asarray(PROMPTS))
  return PromptedPolicy(one.space, one.init, token_log_probs)


KINDS = {"table": table_policy, "transformer": transformer_policy}


def random_problem(policy: PromptedPolicy, program: str, seed: int) -> Problem:
  """Draws and solves one problem; the programs of a seed share policy and rewards.

  Args:
    policy: the policy to train.
    program: "qempo", "qempo_kl", "qempo_c" (nu = 1) or "qempo_c, learned nu".
    seed: of the problem.

  Returns:
    `Problem` in single precision, solved in double.
  """
  init, draw, floor, budget = jax.random.split(jax.random.key(seed), 4)
  params = policy.init(init)
  ref = policy.token_log_probs(params)
  shape = ref.shape[:2]
  rewards = jnp.asarray(REWARD_SCALES)[:, None] * jax.random.normal(draw, shape)
  floor, position, nu = (
    float(jax.random.uniform(key, (), minval=low, maxval=high))
    for key, (low, high) in ((floor, FLOOR_POSITIONS), (budget, KL_POSITIONS), (budget, NUS))
  )
  max_kl = max_coherence = jnp.inf
  with jax.enable_x64(True):
    r = rewards.astype(jnp.float64)
    q = jax.nn.log_softmax(jnp.sum(ref.astype(jnp.float64), axis=-1), axis=-1)
    nu = {"qempo_c": 1.0, "qempo_c, learned nu": nu}.get(program, 0.0)
    base = jax.nn.softmax(exact.log_base_coherent(r, q, threshold=THRESHOLD, nu=nu), axis=-1) if nu else jnp.exp(q)
    low = jnp.maximum(jnp.mean(r), jnp.mean(jnp.sum(base * r, axis=-1)))
    min_reward = low + floor * (jnp.mean(jnp.max(r, axis=-1)) - low)
    if program == "qempo_kl":
      max_kl = exact.feasible_range(r, q, min_reward=min_reward).kl_budget_at(position)
      solution = exact.solve_qempo_kl(r, q, min_reward=min_reward, max_kl=max_kl)
    else:  # nu = 0 is QEMPO
      solution = exact.solve_qempo_coherent(r, q, min_reward=min_reward, threshold=THRESHOLD, nu=nu)
    if program == "qempo_c, learned nu":
      max_coherence = jnp.mean(exact.coherence(solution.log_probs, r, q, threshold=THRESHOLD))
    numbers = (
      min_reward,
      max_kl,
      max_coherence,
      solution.quality_multiplier,
      solution.kl_multiplier,
      nu,
      jnp.mean(solution.entropy),
    )
    numbers = [jnp.asarray(x, jnp.float32) for x in numbers]
  return Problem(params, rewards, ref, *numbers)


def random_problems(policy: PromptedPolicy, program: str, seeds: tuple[int, ...]) -> Problem:
  """Draws one problem a seed, stacked along a first axis."""
  drawn = [random_problem(policy, program, seed) for seed in seeds]
  return jax.tree.map(lambda *x: jnp.stack(x), *drawn)
