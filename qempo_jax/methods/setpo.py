"""SetPO: GRPO with credit for a response's contribution to its group's diversity."""

from collections.abc import Callable
import dataclasses
import functools

import chex
import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from qempo_jax.constraints import Group
from qempo_jax.masking import at_least_float32
from qempo_jax.masking import masked
from qempo_jax.masking import masked_group
from qempo_jax.masking import masked_mean
from qempo_jax.methods import method
from qempo_jax.methods.grpo import grpo


def leave_one_out_set_diversity(diversity: Callable[[Array], Array], mask: Array) -> Array:
  r"""Contribution of each member to the diversity of its set.

      s_k = D(S) - D(S \ {k})

  It is zero if all members are equal and D does not depend on the number of copies. It is not centred: for an
  advantage, take `advantages.leave_one_out` of it, or of the reward that it is added to.

  Args:
    diversity: D, of any unit: maps a [group] boolean mask, the set, to a scalar; called under `jax.vmap`.
    mask: [group] True on the members of S.

  Returns:
    [group] detached, unit of D; zero outside S. A single member also gets zero: D of the empty set is undefined.

  Raises:
    AssertionError: the mask is not of rank 1.
  """
  chex.assert_rank(mask, 1)
  mask = jnp.asarray(mask).astype(bool)
  without = mask[None] & ~jnp.eye(mask.shape[0], dtype=bool)
  marginal = at_least_float32(diversity(mask)) - jax.vmap(diversity)(without)
  return jax.lax.stop_gradient(masked(marginal, mask & (jnp.sum(mask) > 1)))


def kernel_set_diversity(similarities: Array, mask: Array) -> Array:
  """SetPO's diversity of a set: low where many members resemble each other, with diminishing returns.

      D(S) = 1/|S| sum_{i in S} g(1/|S| sum_{j in S} k_ij),   g(x) = -log(1 + x)

  It is -log 2 if all members are equal and tends to 0 for many different ones.

  Source: Li et al., "SetPO: Set-level policy optimization for diversity-preserving LLM reasoning", arXiv
  2602.01062; the formula as restated by others, the paper's body was not at hand. There k is the cosine of
  embeddings of the responses.

  Args:
    similarities: [group, group] symmetric, in [0, 1], 1 on the diagonal; clip a cosine at 0.
    mask: [group] True on the members of S.

  Returns:
    Scalar, unitless; zero for an empty set.

  Raises:
    AssertionError: shapes do not fit.
  """
  (mask,) = masked_group(mask)
  chex.assert_shape(similarities, (mask.shape[0], mask.shape[0]))
  similarities = masked(similarities, mask[:, None] & mask[None])
  mass = jax.vmap(masked_mean, (0, None))(similarities, mask)
  return masked_mean(-jnp.log1p(mass), mask)


def setpo_rewards(similarities: Array, mask: Array | None = None) -> Array:
  r"""SetPO's diversity credit: each response's contribution to the diversity of its group.

      s_k = D(S) - D(S \ {k}),   D of `kernel_set_diversity`

  SetPO adds lambda s_k to a group-normalised advantage, without centring s_k.

  Source: Li et al., arXiv 2602.01062, as `kernel_set_diversity` says.

  Args:
    similarities: [group, group] symmetric, in [0, 1], 1 on the diagonal; clip a cosine at 0.
    mask: [group] True on members that count; None: all.

  Returns:
    [group] detached credits, unitless; zero if all members are equal, and for a group of one.

  Raises:
    AssertionError: shapes do not fit.
  """
  mask = jnp.ones(jnp.shape(similarities)[0], bool) if mask is None else mask
  return leave_one_out_set_diversity(functools.partial(kernel_set_diversity, similarities), mask)


def diversity_credit(advantages: jax.Array, group: Group, terms: method.Terms, *, weight: float) -> jax.Array:
  """weight times `setpo_rewards`, not centred, as in the source."""
  del advantages, terms
  return weight * setpo_rewards(group.features["similarities"], group.fresh)


def setpo(*, weight: float, beta: float = 0.04, min_std: float = 1e-2) -> method.Method:
  """GRPO plus weight times each response's marginal set diversity. Source: Li et al., arXiv 2602.01062.

  The similarity is `token_similarities`; for a sentence encoder's, as in the source, replace `features`.

  Args:
    weight: weight of the credit, in units of the normalised advantage.
    beta: weight of the KL penalty, reward units a nat.
    min_std: least standard deviation, as in `grpo`.
  """
  features = lambda tokens, mask: {"similarities": token_similarities(tokens, mask)}
  change = functools.partial(diversity_credit, weight=weight)
  return dataclasses.replace(grpo(beta=beta, min_std=min_std), change=change, features=features)


def token_similarities(tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Cosines of bags of tokens and token bigrams: 1 for equal responses, 0 without a common token.

  Args:
    tokens: [..., G, T] token ids.
    mask: [..., G, T] True on response tokens.

  Returns:
    [..., G, G] float32; 1 on the diagonal, but 0 in the row and column of an empty response.
  """
  tokens, mask = np.asarray(tokens, np.int64), np.asarray(mask, bool)
  pairs = tokens[..., :-1] * (int(tokens.max(initial=0)) + 1) + tokens[..., 1:]
  dots = _common(tokens, mask) + _common(pairs, mask[..., :-1] & mask[..., 1:])
  norms = np.sqrt(np.einsum("...ii->...i", dots))
  scale = norms[..., :, None] * norms[..., None, :]
  return np.divide(dots, scale, out=np.zeros_like(dots), where=scale > 0).astype(np.float32)


def _common(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """[..., G, G] inner products of counts: the number of position pairs with equal ids."""
  size = ids.shape[-2]
  dots = np.zeros((*ids.shape[:-1], size))
  for t in range(ids.shape[-1]):
    same = (ids[..., :, None, :] == ids[..., None, :, t : t + 1]) & mask[..., :, None, :]
    dots += np.sum(same & mask[..., None, :, t : t + 1], axis=-1)
  return dots
