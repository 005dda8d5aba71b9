"""Estimators that `estimator_variance` compares, each a surrogate loss of one member of a group of samples."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from qempo_jax import estimators
from qempo_jax.testing.expectation import Samples

# The surrogate of one member of a group: a scalar whose gradient is the estimate.
Surrogate = Callable[[Samples, int], jax.Array]


def _others(x: jax.Array, k: int) -> jax.Array:
  """Detached mean over the other members of the group; 0 for a group of one."""
  return jax.lax.stop_gradient((jnp.sum(x) - x[k]) / max(x.shape[0] - 1, 1))


ENTROPY: dict[str, Surrogate] = {
  "score function": lambda s, k: estimators.score_function_entropy_surrogate(
    s.token_log_probs[k], s.mask[k], baseline=0.0
  ),
  "leave-one-out": lambda s, k: estimators.score_function_entropy_surrogate(
    s.token_log_probs[k], s.mask[k], baseline=_others(s.log_probs, k)
  ),
  "reward-to-go": lambda s, k: estimators.reward_to_go_entropy_surrogate(s.token_log_probs[k], s.mask[k]),
  "Rao-Blackwell": lambda s, k: estimators.sequence_entropy_surrogate(
    s.token_log_probs[k], s.token_entropies[k], s.mask[k]
  ),
  "Rao-Blackwell, one number": lambda s, k: estimators.sequence_entropy_surrogate(
    s.token_log_probs[k],
    s.token_entropies[k],
    s.mask[k],
    baseline=_others(jnp.sum(s.token_entropies, axis=-1), k),
  ),
  "Rao-Blackwell, leave-one-out": lambda s, k: estimators.sequence_entropy_surrogate(
    s.token_log_probs[k],
    s.token_entropies[k],
    s.mask[k],
    baseline=estimators.leave_one_out_to_go(s.token_entropies, s.mask)[k],
  ),
  "token-only": lambda s, k: estimators.token_only_entropy_surrogate(s.token_entropies[k], s.mask[k]),
}
KL: dict[str, Surrogate] = {
  "score function": lambda s, k: estimators.score_function_kl_surrogate(
    s.token_log_probs[k], s.ref_token_log_probs[k], s.mask[k], baseline=0.0
  ),
  "leave-one-out": lambda s, k: estimators.score_function_kl_surrogate(
    s.token_log_probs[k],
    s.ref_token_log_probs[k],
    s.mask[k],
    baseline=_others(s.log_probs - s.ref_log_probs, k),
  ),
  "Rao-Blackwell": lambda s, k: estimators.sequence_kl_surrogate(s.token_log_probs[k], s.token_kls[k], s.mask[k]),
  "Rao-Blackwell, one number": lambda s, k: estimators.sequence_kl_surrogate(
    s.token_log_probs[k],
    s.token_kls[k],
    s.mask[k],
    baseline=_others(jnp.sum(s.token_kls, axis=-1), k),
  ),
  "Rao-Blackwell, leave-one-out": lambda s, k: estimators.sequence_kl_surrogate(
    s.token_log_probs[k],
    s.token_kls[k],
    s.mask[k],
    baseline=estimators.leave_one_out_to_go(s.token_kls, s.mask)[k],
  ),
  "token-only": lambda s, k: jnp.sum(s.token_kls[k]),
  "k3 in the loss": lambda s, k: estimators.kl_values(s.log_probs[k], s.ref_log_probs[k]).k3,
}
GROUPED = ("leave-one-out", "Rao-Blackwell, one number", "Rao-Blackwell, leave-one-out")
BIASED = ("token-only", "k3 in the loss")
TARGETS = {"entropy": ENTROPY, "KL": KL}


def ascended(surrogate: Surrogate) -> Callable[[Samples], jax.Array]:
  """Returns the loss whose negative gradient is the group mean of the surrogate's gradient."""
  return lambda s: -jnp.mean(jnp.stack([surrogate(s, k) for k in range(s.rewards.shape[0])]))
