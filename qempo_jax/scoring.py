"""Log-probability and entropy of given responses: the training forward."""

import jax
import jax.numpy as jnp

from qempo_jax import sharding
from qempo_jax.models import transformer
from qempo_jax.models.config import ModelConfig
from qempo_jax.token_stats import TokenStats
from qempo_jax.token_stats import token_stats
from qempo_jax.types import PackedGroups


def score_groups(
    params,
    config: ModelConfig,
    packed: PackedGroups,
    *,
    group_size: int,
    max_length: int,
    temperature: float,
    chunk_size: int,
    remat: bool = True,
) -> TokenStats:
  """Scores every response of every group, computing each prompt once.

  Args:
    params: the decoder's parameters.
    config: the decoder's shape.
    packed: prompts with their responses.
    group_size: responses a prompt, G.
    max_length: longest response, T tokens.
    temperature: that of the sampler.
    chunk_size: tokens whose logits exist at once, on each part of the rows (see `sharding.row_shards`).
    remat: recompute blocks in the backward pass.

  Returns:
    TokenStats of shape [P, G, T], in nats, 0 where there is no token.
  """
  mask = shared_prompt_mask(packed.positions, packed.segments)
  hidden = transformer.forward(params, config, packed.tokens, packed.positions, mask, remat=remat)
  predicting = jnp.take_along_axis(hidden, packed.source[:, :, None], axis=1)
  prompts, scored, _ = predicting.shape
  shards = sharding.row_shards()
  # A chunk takes a few tokens of every row, so that every device works on each with the rows that it has.
  places = max(1, min(chunk_size * shards // prompts, scored)) if shards > 1 else None
  flat = token_stats(
      _chunked(predicting, places),
      transformer.unembedding(params),
      _chunked(packed.target, places),
      temperature=temperature,
      chunk_size=chunk_size if places is None else prompts * places,
      compute_dtype=config.compute_dtype,
      logit_softcap=config.logit_softcap,
      num_tokens=config.num_tokens,
  )
  row = jnp.arange(prompts)[:, None]

  def spread(values):
    empty = jnp.zeros((prompts, group_size, max_length), values.dtype)
    place = (row, packed.sample, packed.time)
    return empty.at[place].set(_unchunked(values, prompts, scored, places), mode="drop")

  return jax.tree.map(spread, flat)


def _chunked(rows_PxS, places):
  """[P, S, ...] -> [T, ...]: row by row, or `places` tokens of every row, then the next, the end padded with zeros."""
  prompts, scored, *rest = rows_PxS.shape
  if places is None:
    return rows_PxS.reshape(prompts * scored, *rest)
  padded = jnp.pad(rows_PxS, ((0, 0), (0, -scored % places), *((0, 0) for _ in rest)))
  return jnp.swapaxes(padded.reshape(prompts, -1, places, *rest), 0, 1).reshape(-1, *rest)


def _unchunked(flat_T, prompts, scored, places):
  """Undoes `_chunked`: [T] -> [P, S]."""
  if places is None:
    return flat_T.reshape(prompts, scored)
  return jnp.swapaxes(flat_T.reshape(-1, prompts, places), 0, 1).reshape(prompts, -1)[:, :scored]


def shared_prompt_mask(positions_PxR, segments_PxR):
  """A token sees its prompt and the earlier tokens of its own response: [P, R, R]."""
  query, key = segments_PxR[:, :, None], segments_PxR[:, None, :]
  earlier = positions_PxR[:, None, :] <= positions_PxR[:, :, None]
  return earlier & ((key == query) | (key == 0)) & (query >= 0) & (key >= 0)
