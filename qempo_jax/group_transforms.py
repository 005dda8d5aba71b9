"""What other methods do to a group's rewards or advantages, by name, for the online step.

    none    nothing
    mara    rewards: `diversity_rewards.mara_rewards`, the KL weight that of the run, mu / lambda
    ucpo    advantages of the reward: `diversity_rewards.ucpo_advantages` with tau = strength
    setpo   advantages: strength times `diversity_rewards.setpo_rewards`, uncentred, as its source has it

The similarity that SetPO needs is `token_similarities`: cosines of bags of tokens and of neighbouring pairs of tokens.
Its source uses a sentence encoder's; an encoder can take this one's place in `GroupBatch.similarities`.
"""

from typing import NamedTuple

from jax import Array
import jax.numpy as jnp
import numpy as np

from qempo_jax import diversity_rewards
from qempo_jax.errors import InputError

TRANSFORMS = ("none", "mara", "ucpo", "setpo")


class Transform(NamedTuple):
  """Which transformation, and how much of it.

  Attributes:
    name: one of `TRANSFORMS`.
    strength: tau of "ucpo", in [0, 1]; weight of "setpo", in units of the advantage.
    good_reward: "mara" and "ucpo": responses with at least this reward are good.
  """

  name: str
  strength: float | Array
  good_reward: float | Array


def rewards(transform: Transform, values: Array, ref_log_probs: Array, fresh: Array, *, beta: float | Array) -> Array:
  """The rewards to train on.

  Args:
    transform: which.
    values: [G] rewards.
    ref_log_probs: [G] sequence log-probs under the reference, nats.
    fresh: [G] True on members of the group.
    beta: weight of the KL penalty, reward per nat.

  Returns:
    [G] rewards; `values` themselves for all but "mara".
  """
  if transform.name != "mara":
    return values
  return diversity_rewards.mara_rewards(values, ref_log_probs, fresh, min_reward=transform.good_reward, beta=beta)


def advantage_change(
  transform: Transform, advantages: Array, values: Array, log_probs: Array, similarities: Array | None, fresh: Array
) -> Array:
  """What is added to the advantages.

  Args:
    transform: which.
    advantages: [G] of the reward alone, normalised as the run's are.
    values: [G] rewards.
    log_probs: [G] sequence log-probs under the policy that sampled, nats.
    similarities: [G, G] for "setpo", else unused.
    fresh: [G] True on members of the group.

  Returns:
    [G], zero for "none" and "mara".

  Raises:
    InputError: "setpo" without similarities.
  """
  if transform.name == "ucpo":
    correct = values >= transform.good_reward
    return diversity_rewards.ucpo_advantages(advantages, log_probs, correct, fresh, tau=transform.strength) - advantages
  if transform.name == "setpo":
    if similarities is None:
      raise InputError("setpo needs GroupBatch.similarities: fill it, for instance by group_transforms.token_similarities")
    return transform.strength * diversity_rewards.setpo_rewards(similarities, fresh)
  return jnp.zeros_like(advantages)


def token_similarities(tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Cosines of bags of tokens and of neighbouring pairs: 1 for equal responses, 0 without a common token.

  Args:
    tokens: [..., G, T] token ids.
    mask: [..., G, T] True on response tokens.

  Returns:
    [..., G, G] float32; 0 beside a response without tokens, 1 on the diagonal of the others.
  """
  tokens, mask = np.asarray(tokens, np.int64), np.asarray(mask, bool)
  pairs = tokens[..., :-1] * (int(tokens.max(initial=0)) + 1) + tokens[..., 1:]
  dots = _common(tokens, mask) + _common(pairs, mask[..., :-1] & mask[..., 1:])
  norms = np.sqrt(np.einsum("...ii->...i", dots))
  scale = norms[..., :, None] * norms[..., None, :]
  return np.divide(dots, scale, out=np.zeros_like(dots), where=scale > 0).astype(np.float32)


def _common(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """[..., G, G] inner products of counts: how many (place, place) hold the same id."""
  size = ids.shape[-2]
  dots = np.zeros((*ids.shape[:-1], size))
  for place in range(ids.shape[-1]):
    same = (ids[..., :, None, :] == ids[..., None, :, place : place + 1]) & mask[..., :, None, :]
    dots += np.sum(same & mask[..., None, :, place : place + 1], axis=-1)
  return dots
