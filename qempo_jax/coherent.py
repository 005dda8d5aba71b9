"""The coherence constraint of QEMPO-C: its gate, its base measure, and its closed forms for a binary reward.

    max H(pi)  s.t.  E[r] >= R,  E[g(r) (-log q)] <= C          pi ∝ q^(nu g) exp(lambda r)

The gate g is 1{r < tau}: 1 on unacceptable responses, 0 on the acceptable set A. `exact` re-exports the public names
and solves the program for any reward.

Source: the family of programs of arXiv 2602.15894 with another linear constraint; this one is ours.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from qempo_jax import dual_newton
from qempo_jax.errors import InputError
from qempo_jax.feasible import InfeasibleError
from qempo_jax.feasible import traced
from qempo_jax.root_finding import increasing_root


def gate(rewards: chex.Array, *, threshold: chex.Numeric, width: chex.Numeric = 0.0) -> jax.Array:
  """Returns the weight of the reference on each response: 1 if unacceptable, 0 if acceptable.

      g = 1{r < tau},     with a width   g = sigmoid((tau - r) / width)

  Args:
    rewards: [...] rewards.
    threshold: tau, the smallest reward of an acceptable response; broadcasts.
    width: width of the soft gate, reward units; 0 for the hard gate.

  Returns:
    [...] in [0, 1]; NaN where a reward is NaN.
  """
  rewards, width = jnp.asarray(rewards), jnp.asarray(width)
  soft = jax.nn.sigmoid((threshold - rewards) / jnp.where(width > 0, width, 1))
  hard = jnp.where(jnp.isnan(rewards), jnp.nan, jnp.where(rewards < threshold, 1.0, 0.0))
  return jnp.where(width > 0, soft, hard)


def log_base_coherent(
  rewards: chex.Array,
  ref_log_probs: chex.Array,
  *,
  threshold: chex.Numeric,
  nu: chex.Numeric = 1.0,
  width: chex.Numeric = 0.0,
) -> jax.Array:
  """Returns QEMPO-C's log base measure: 0 on acceptable responses, nu log q on the others, -inf outside the response set.

      m(y) = q(y)^(nu g(r(y)))

  Args:
    rewards: [..., Y] rewards.
    ref_log_probs: log-probs of the reference, nats, same shape.
    threshold: tau, the smallest reward of an acceptable response.
    nu: multiplier of the coherence constraint.
    width: width of the soft gate of `gate`, reward units; 0 for the hard gate.

  Returns:
    log m, same shape; not normalised.
  """
  inside = ref_log_probs > -jnp.inf
  log_base = nu * gate(rewards, threshold=threshold, width=width) * jnp.where(inside, ref_log_probs, 0.0)
  return jnp.where(inside, log_base, -jnp.inf)


def coherence(
  log_probs: chex.Array,
  rewards: chex.Array,
  ref_log_probs: chex.Array,
  *,
  threshold: chex.Numeric,
  width: chex.Numeric = 0.0,
) -> jax.Array:
  """Returns E[1{r < tau} (-log q)], nats, the value that the coherence constraint bounds.

  At a given floor a bound C binds between 0 (every response acceptable) and the value of QEMPO's optimum.

  Args:
    log_probs: [..., Y] log-probs of a policy, nats.
    rewards: [..., Y] rewards.
    ref_log_probs: [..., Y] log-probs of the reference, nats; -inf outside the response set.
    threshold: tau, the smallest reward of an acceptable response.
    width: width of the soft gate, reward units; 0 for the hard gate.

  Returns:
    [...] nats.
  """
  log_base = log_base_coherent(rewards, ref_log_probs, threshold=threshold, width=width)
  return -dual_newton.expectation(log_probs, jnp.where(log_base > -jnp.inf, log_base, 0.0))


class BinaryCoherent(NamedTuple):
  """QEMPO-C's optimum for a binary reward.

  Attributes:
    quality_multiplier: lambda, nats per unit of reward, scalar; 0 if the floor is slack, inf at the highest floor.
    acceptable_share: pi(A), [P] or scalar.
    free_floor: mean of pi(A) at lambda = 0, the largest floor that costs no entropy; scalar.
    highest_floor: share of prompts that have an acceptable response, the supremum of floors; scalar.
    log_partition: log Z = log(|A| exp(lambda) + q(not A)), [P] or scalar.
  """

  quality_multiplier: jax.Array
  acceptable_share: jax.Array
  free_floor: jax.Array
  highest_floor: jax.Array
  log_partition: jax.Array


def qempo_coherent_binary(
  num_acceptable: chex.Numeric, ref_unacceptable: chex.Numeric, *, min_reward: chex.Numeric
) -> BinaryCoherent:
  """Returns QEMPO-C's optimum for the reward 1{y in A}, from two numbers per prompt and without enumeration.

      pi(A) = sigmoid(lambda + log |A| - log q(not A)),     pi uniform on A, proportional to q off A
      lambda = max(0, logit R + log q(not A) - log |A|)                             one prompt
      lambda the root of mean_p pi_p(A) = R                                         several, one multiplier for all
      Z = |A| exp(lambda) + q(not A) <= |A| exp(lambda) + 1                         for any cap on the length

  An underestimate of |A|, or an overestimate of q(not A) such as 1, gives an upper bound of lambda. For another nu,
  replace q(not A) by sum_{not A} q^nu; for nu < 1 this sum grows with the cap on the length.

  Args:
    num_acceptable: |A|, the number of acceptable responses; scalar, or [P] for P prompts.
    ref_unacceptable: q(not A), the reference's probability of an unacceptable response; same shape.
    min_reward: floor R of the mean over prompts, scalar.

  Returns:
    A BinaryCoherent.

  Raises:
    InfeasibleError: the floor is above the share of prompts that have an acceptable response.
    InputError: a negative number, a mass outside [0, 1], or a prompt with neither.

  Examples:
    A hundred acceptable answers outweigh everything else that the reference writes: the floor is free.

    >>> best = qempo_coherent_binary(100.0, 0.7, min_reward=0.9)
    >>> round(float(best.quality_multiplier), 3), round(float(best.acceptable_share), 3)
    (0.0, 0.993)
  """
  dtype = jnp.result_type(num_acceptable, ref_unacceptable, min_reward, jnp.float32)
  number, mass = jnp.broadcast_arrays(jnp.asarray(num_acceptable, dtype), jnp.asarray(ref_unacceptable, dtype))
  if not traced(number, mass):
    if not (np.all(number >= 0) and np.all((mass >= 0) & (mass <= 1)) and np.all(number + mass > 0)):
      raise InputError("num_acceptable must be at least 0, ref_unacceptable in [0, 1], and not both 0 for a prompt")
  highest = jnp.mean(number > 0, dtype=dtype)
  if not traced(number, mass, min_reward) and not min_reward <= highest:
    raise InfeasibleError(
      f"min_reward {min_reward:.6g} is out of reach: {float(highest):.0%} of the prompts have an acceptable response,"
      f" so choose a floor of at most {float(highest):.6g}"
    )
  log_odds = jnp.log(number) - jnp.log(mass)
  share = lambda multiplier: jax.nn.sigmoid(multiplier + log_odds)
  floor = jnp.asarray(min_reward, dtype)
  reachable = jnp.minimum(floor, highest - jnp.finfo(dtype).eps)
  start = jnp.clip(jax.scipy.special.logit(reachable) - jnp.mean(jnp.clip(log_odds, -50, 50)), 0, 50)
  root = increasing_root(lambda multiplier: jnp.mean(share(multiplier)) - reachable, start.astype(dtype))
  multiplier = jnp.where((floor >= highest) & (jnp.mean(share(0.0)) < floor), jnp.inf, root)
  return BinaryCoherent(
    quality_multiplier=multiplier,
    acceptable_share=jnp.where(number > 0, share(multiplier), 0.0),
    free_floor=jnp.mean(share(0.0)),
    highest_floor=highest,
    log_partition=jnp.logaddexp(jnp.where(number > 0, multiplier + jnp.log(number), -jnp.inf), jnp.log(mass)),
  )


def coherent_target_log_probs(
  acceptable: chex.Array,
  ref_log_probs: chex.Array,
  *,
  acceptable_share: chex.Numeric,
  num_acceptable: chex.Numeric,
  ref_unacceptable: chex.Numeric,
) -> jax.Array:
  """Returns the log-probs of logged responses under QEMPO-C's optimum for a binary reward, the target of offline regression.

      log pi*(y) = log(R / |A|)                            on A
      log pi*(y) = log q(y) + log((1 - R) / q(not A))      off A

  The responses may come from any policy, and each is one term of `losses.target_regression_loss`. A response's target
  needs no other response: two numbers per prompt replace the partition function.

  Args:
    acceptable: [..., n] True on responses of A.
    ref_log_probs: [..., n] log-probs of the responses under the reference, nats.
    acceptable_share: R, the target probability of acceptable responses; scalar or [...]. A share below
      `BinaryCoherent.free_floor` is not an optimum: use `BinaryCoherent.acceptable_share`.
    num_acceptable: |A|, same shape. If unknown, use the number of distinct acceptable responses in the log.
    ref_unacceptable: q(not A), same shape. If unknown, use the unacceptable share of samples of the reference.

  Returns:
    [..., n] log-probs, nats; they sum to one over all responses.
  """
  over_responses = lambda x: jnp.asarray(x)[..., None] if jnp.ndim(x) else jnp.asarray(x)
  share, number, mass = map(over_responses, (acceptable_share, num_acceptable, ref_unacceptable))
  on = jnp.log(share) - jnp.log(number)
  off = jnp.log1p(-share) - jnp.log(mass)
  return jnp.where(acceptable, on, ref_log_probs + off)
