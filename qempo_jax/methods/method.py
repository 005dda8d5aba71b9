"""A method as a value: hooks of `group_loss`, each a pure function of one group, with QEMPO's as defaults."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qempo_jax import advantages
from qempo_jax import estimators
from qempo_jax.constraints import Group
from qempo_jax.token_stats import TokenStats


class Prices(NamedTuple):
  """Weights of the Lagrangian.

  Attributes:
    entropy_weight: h, 1 for QEMPO, 0 for reward maximisation.
    multipliers: by constraint name, nats per unit of the constraint's value.
  """

  entropy_weight: jax.typing.ArrayLike
  multipliers: Mapping[str, jax.typing.ArrayLike]


class Terms(NamedTuple):
  """Parts of one group's Lagrangian, detached; see `group_loss`.

  Attributes:
    log_probs: [G] sequence log-probs log pi(y), nats.
    rewards: [G] r: the rewards under floors, averaged with their multipliers as weights.
    reward_weight: L, the sum of those multipliers.
    rest: [G] the other constraints' part of the sum, without log pi.
    log_prob_weight: c, the weight of -log pi(y).
    divisor: h plus the sum of all multipliers.
    multipliers: by constraint name.
  """

  log_probs: jax.Array
  rewards: jax.Array
  reward_weight: jax.Array
  rest: jax.Array
  log_prob_weight: jax.Array
  divisor: jax.Array
  multipliers: Mapping[str, jax.typing.ArrayLike]


def keep_rewards(group: Group, terms: Terms) -> jax.Array:
  """The rewards, unchanged."""
  del group
  return terms.rewards


def no_scale(shaped: jax.Array, mask: jax.Array) -> jax.Array:
  """1: the loss is not divided."""
  del shaped, mask
  return jnp.ones(())


def score_function(stats: TokenStats, group: Group, terms: Terms, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Entropy gradient by -log pi(y) in the reward: no credit and no added loss."""
  del stats, terms, scale
  return (jnp.zeros(group.fresh.shape),) * 2


def rao_blackwell(stats: TokenStats, group: Group, terms: Terms, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Entropy gradient from exact next-token entropies: log pi(y) leaves the reward, and a surrogate joins the loss."""
  surrogate = jax.vmap(estimators.sequence_entropy_surrogate)
  return scale * terms.log_probs, -scale * surrogate(stats.log_prob, stats.entropy, group.mask)


def no_change(advantages: jax.Array, group: Group, terms: Terms) -> jax.Array:
  """Zeros: the advantages stay."""
  del group, terms
  return jnp.zeros_like(advantages)


def no_extra(stats: TokenStats, group: Group) -> jax.Array:
  """Zero: the loss stays."""
  del stats, group
  return jnp.zeros(())


def no_features(tokens: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
  """No features."""
  del tokens, mask
  return {}


@dataclasses.dataclass(frozen=True)
class Method:
  """The hooks that distinguish one method from another. A new method is a function that returns this value.

  Attributes:
    baseline: ([G] shaped rewards, [G] on-policy mask) -> [G] advantages.
    rewards: (group, terms) -> [G] rewards in place of `terms.rewards`.
    scale: ([G] shaped rewards, [G] on-policy mask) -> scalar divisor of the group's whole loss.
    entropy: (stats, group, terms, scale of -log pi) -> ([G] added to rewards before the baseline, [G] added losses).
    change: ([G] advantages of the rewards alone, group, terms) -> [G] added to the advantages.
    extra: (stats, group) -> scalar added to the group's divided loss.
    features: on the host, (token ids [..., G, T], mask [..., G, T]) -> arrays by name for `Group.features`.
    entropy_weight: h, 1 to maximise entropy, 0 to maximise the reward.
    multipliers: initial multipliers by constraint name, in place of the run's own.
    name: label in reports, with settings; set by `resolve`.
  """

  baseline: Callable[..., jax.Array] = advantages.leave_one_out
  rewards: Callable[..., jax.Array] = keep_rewards
  scale: Callable[..., jax.Array] = no_scale
  entropy: Callable[..., tuple[jax.Array, jax.Array]] = score_function
  change: Callable[..., jax.Array] = no_change
  extra: Callable[..., jax.Array] = no_extra
  features: Callable[..., dict[str, Any]] = no_features
  entropy_weight: float = 1.0
  multipliers: Mapping[str, float] = dataclasses.field(default_factory=dict)
  name: str = ""
