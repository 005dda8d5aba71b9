"""Attention in rows that hold prompts once and all their responses after them.

A response's token attends to the prompt and to the earlier tokens of its own response, at most `reach` columns back.
The scores of G responses of T tokens to a prompt of L therefore take G T (L + T) numbers besides the prompt's own L^2,
instead of (L + G T)^2 for whole rows:

    out_t = (sum_l e^(s_tl) v_l + sum_u e^(s_tu) v_u) / (sum_l e^(s_tl) + sum_u e^(s_tu)),   l prompt, u own past

Source: the shared prompt of batched decoding (Juravsky et al., "Hydragen", arXiv 2402.05099); here with its gradient,
the sum over the responses. In a row with several prompts, each response attends to its own. Shape letters as in
`layers`, and P rows, L columns of prompts, S columns of responses, cut into N chunks of C, whose queries have W past
keys each; Q = H / J query heads of a key head.
"""

import jax
import jax.numpy as jnp

from qempo_jax import sharding
from qempo_jax.models import attention as whole_rows
from qempo_jax.models import head_products
from qempo_jax.models import layers
from qempo_jax.models.positions import within_window
from qempo_jax.token_stats import softcap
from qempo_jax.types import PackedGroups


def mask_of_rows(positions_PxR, segments_PxR, responses: int):
  """Mask [P, R, R] by which a token attends to its prompt and the earlier tokens of its own response.

  Args:
    positions_PxR: rotary positions.
    segments_PxR: as in `PackedGroups`, in any order.
    responses: G, responses a prompt.
  """
  query, key = segments_PxR[:, :, None], segments_PxR[:, None, :]
  earlier = positions_PxR[:, None, :] <= positions_PxR[:, :, None]
  return earlier & ((key == query) | (key == _prompt_of(query, responses))) & (query >= 0) & (key >= 0)


def attender(packed: PackedGroups, config):
  """The `attend` function of `layers.block` for packed rows: (q, k, v, the block's window) -> [P, R, H, K].

  The implementation is that of `attention`. Splash takes whole rows, since it skips masked blocks by itself.

  Args:
    packed: rows, with their layout.
    config: the decoder's config.

  Raises:
    InputError: the implementation named in `config.attention` cannot compute this.
  """
  positions, segments, layout = packed.positions, packed.segments, packed.layout
  platform = sharding.platform()
  length = segments.shape[1] if platform == "tpu" else layout.chunk

  def attend(q, k, v, window):
    name = whole_rows.chosen(config, length, q.shape[3], platform, whole_rows.obstacle_to_splitting(q, k))
    if name == "splash":
      queries, keys = positions[:, :, None], positions[:, None, :]
      seen = within_window(mask_of_rows(positions, segments, layout.responses), queries, keys, window)
      return whole_rows.splash(q, k, v, seen, config)
    return by_parts(q, k, v, packed, config, window=window, joined=whole_rows.cudnn if name == "cudnn" else None)

  return attend


def by_parts(q_PxRxHxK, k_PxRxJxK, v_PxRxJxK, packed: PackedGroups, config, *, window=None, joined=None):
  """Attention of the prompts to themselves, and of the responses to prompt and own past.

  Args:
    q_PxRxHxK: rotated queries.
    k_PxRxJxK: rotated keys.
    v_PxRxJxK: values.
    packed: the rows' positions, segments and layout.
    config: the decoder's config: scale and soft-cap of the scores.
    window: tokens that a query attends to, itself included; None: all.
    joined: attention (q, k, v, mask, config) over both parts as one list of keys, the prompt's repeated for every
      chunk, for kernels that never hold the scores. None computes the two parts' scores separately.

  Returns:
    [P, R, H, K]; arbitrary but finite on padding.
  """
  prompt, columns = packed.layout.prompt, packed.segments.shape[1] - packed.layout.prompt
  chunk, chunks_back = _chunking(packed.layout, columns)
  # Pads to a number of chunks that the devices of a row divide evenly.
  missing = -(columns // chunk) % sharding.sequence_shards() * chunk
  pad = lambda x, fill=0: jnp.pad(x, ((0, 0), (0, missing), *((0, 0),) * (x.ndim - 2)), constant_values=fill)
  of_prompt, of_responses = lambda x: x[:, :prompt], lambda x, fill=0: pad(x[:, prompt:], fill)
  in_chunks = lambda x: sharding.split_tokens(_chunks(x, chunk))
  past = lambda x, fill=0: sharding.split_tokens(_past(_chunks(of_responses(x, fill), chunk), chunks_back, fill))

  positions, segments = packed.positions, packed.segments
  queries = in_chunks(of_responses(positions))[..., None]
  query_segments = in_chunks(of_responses(segments, -1))[..., None]
  keys, key_segments = past(positions)[:, :, None], past(segments, -1)[:, :, None]
  sees_own_PxNxCxW = (key_segments == query_segments) & (query_segments >= 0) & (keys <= queries)
  sees_own_PxNxCxW = within_window(sees_own_PxNxCxW, queries, keys, window)
  keys, own_prompt = of_prompt(positions)[:, None, None], _prompt_of(query_segments, packed.layout.responses)
  is_own = (of_prompt(segments)[:, None, None] == own_prompt) & (query_segments >= 0)
  sees_prompt_PxNxCxL = within_window(is_own, queries, keys, window)
  causal = mask_of_rows(of_prompt(positions), of_prompt(segments), packed.layout.responses)
  causal = within_window(causal, of_prompt(positions)[:, :, None], of_prompt(positions)[:, None], window)

  plain = layers.attention if joined is None else joined
  prompts = plain(
    sharding.split_tokens(of_prompt(q_PxRxHxK)), of_prompt(k_PxRxJxK), of_prompt(v_PxRxJxK), causal, config
  )
  arrays = (
    in_chunks(of_responses(q_PxRxHxK)),
    of_prompt(k_PxRxJxK),
    of_prompt(v_PxRxJxK),
    past(k_PxRxJxK),
    past(v_PxRxJxK),
    sees_prompt_PxNxCxL,
    sees_own_PxNxCxW,
    config,
  )
  responses = _apart(*arrays) if joined is None else _together(*arrays, joined)
  responses = responses.reshape(responses.shape[0], columns + missing, *responses.shape[3:])[:, :columns]
  return jnp.concatenate([prompts, responses], axis=1)


def _prompt_of(segments, responses: int):
  """Segment of the prompt that a segment's response answers, or of the prompt itself."""
  return segments - segments % (responses + 1)


def _chunking(layout, columns: int) -> tuple[int, int]:
  """(C, number of earlier chunks that a query's own response can reach into).

  If these would be all chunks, there is one chunk, or one for each device that shares a row.
  """
  back = -(-(layout.reach - 1) // layout.chunk)
  if (back + 1) * layout.chunk < columns:
    return layout.chunk, back
  parts = sharding.sequence_shards()
  return (columns // parts, parts - 1) if columns % parts == 0 else (columns, 0)


def _chunks(x_PxS, chunk: int):
  return x_PxS.reshape(x_PxS.shape[0], -1, chunk, *x_PxS.shape[2:])


def _past(x_PxNxC, chunks_back: int, fill):
  """Every chunk preceded by its earlier chunks: [P, N, (chunks_back + 1) C, ...]."""
  chunks = x_PxNxC.shape[1]
  padding = [(0, 0)] * x_PxNxC.ndim
  padding[1] = (chunks_back, 0)
  padded = jnp.pad(x_PxNxC, padding, constant_values=fill)
  return jnp.concatenate([padded[:, start : start + chunks] for start in range(chunks_back + 1)], axis=2)


def _apart(q, prompt_k, prompt_v, own_k, own_v, sees_prompt, sees_own, config):
  """Attention with separate scores of both parts and one softmax: [P, N, C, H, K]."""
  rows, chunks, chunk, heads, width = q.shape
  shared = own_k.shape[3]
  q = q.reshape(rows, chunks, chunk, shared, heads // shared, width) * config.attention_scale
  # With heads first, the scores of both parts, the largest arrays here, need no transpose.
  q_PxJxNxCxQxK = jnp.moveaxis(q, 3, 1)
  heads_first = lambda x: jnp.moveaxis(x, -2, 1)
  prompt_k, prompt_v, own_k, own_v = map(heads_first, (prompt_k, prompt_v, own_k, own_v))

  def scores(k, seen):
    product = softcap(head_products.scores(q_PxJxNxCxQxK, k), config.attention_softcap)
    return jnp.where(seen[:, None, :, :, None], product, jnp.finfo(jnp.float32).min)

  to_prompt, to_own = scores(prompt_k, sees_prompt), scores(own_k, sees_own)
  highest = lambda x: jnp.max(x, axis=-1, keepdims=True)
  top = jax.lax.stop_gradient(jnp.maximum(highest(to_prompt), highest(to_own)))
  on_prompt, on_own = jnp.exp(to_prompt - top), jnp.exp(to_own - top)
  total = jnp.sum(on_prompt, axis=-1, keepdims=True) + jnp.sum(on_own, axis=-1, keepdims=True)
  attended = head_products.mix(on_prompt, prompt_v) + head_products.mix(on_own, own_v)
  return jnp.moveaxis(attended / total, 1, 3).astype(own_v.dtype).reshape(rows, chunks, chunk, heads, width)


def _together(q, prompt_k, prompt_v, own_k, own_v, sees_prompt, sees_own, config, joined):
  """Attention with every chunk as a row of its own, the prompt's keys and values before its past's: [P, N, C, H, K]."""
  rows, chunks = q.shape[:2]

  def joined_keys(prompt, own):
    prompt = jnp.broadcast_to(prompt[:, None], (rows, chunks, *prompt.shape[1:]))
    return as_rows(jnp.concatenate([prompt, own], axis=2))

  as_rows = lambda x: x.reshape(rows * chunks, *x.shape[2:])
  mask = as_rows(jnp.concatenate([sees_prompt, sees_own], axis=-1))
  attended = joined(as_rows(q), joined_keys(prompt_k, own_k), joined_keys(prompt_v, own_v), mask, config)
  return attended.reshape(q.shape)
