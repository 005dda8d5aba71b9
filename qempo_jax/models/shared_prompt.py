"""Attention in rows that hold prompts once and all their responses after them.

A response's token attends to the prompt and to the earlier tokens of its own response, at most `reach` columns back.
The scores of G responses of T tokens to a prompt of L therefore take G T (L + T) numbers besides the prompt's own L^2,
instead of (L + G T)^2 for whole rows:

    out_t = (sum_l e^(s_tl) v_l + sum_u e^(s_tu) v_u) / (sum_l e^(s_tl) + sum_u e^(s_tu)),   l prompt, u own past

Source: the shared prompt of batched decoding (Juravsky et al., "Hydragen", arXiv 2402.05099); here with its gradient,
the sum over the responses. In a row with several prompts, each response attends to its own.

  by_parts         short responses: all scores of a row's parts at once, or a kernel with a mask
  by_responses     long responses on GPUs and TPUs: a causal kernel without a mask, each response after its prompt
  blockwise        long responses elsewhere, and tokens sharded over devices

Memory of the last two is linear in the row. Shape letters as in `layers`, and P rows, L columns of prompts, S columns of
responses, cut into N chunks of C, whose queries have W past keys each; Q = H / J query heads of a key head.
"""

import functools

import jax
import jax.numpy as jnp

from qempo_jax import sharding
from qempo_jax.errors import InputError
from qempo_jax.masking import at_least_float32
from qempo_jax.models import attention as whole_rows
from qempo_jax.models import blockwise
from qempo_jax.models import head_products
from qempo_jax.models import layers
from qempo_jax.models.positions import UNLIMITED
from qempo_jax.models.positions import Tokens
from qempo_jax.models.positions import attends
from qempo_jax.models.positions import places
from qempo_jax.token_stats import softcap
from qempo_jax.types import PackedGroups

MAX_BYTES = 2**27  # Largest array of scores, or of a mask, on a device: 128 MiB.


def mask_of_rows(positions_PxR, segments_PxR, responses: int):
  """Mask [P, R, R] by which a token attends to its prompt and the earlier tokens of its own response.

  Args:
    positions_PxR: rotary positions.
    segments_PxR: as in `PackedGroups`, in any order.
    responses: G, responses a prompt.
  """
  tokens = Tokens(positions_PxR, jnp.zeros_like(positions_PxR), segments_PxR)
  return attends(tokens, tokens, responses)


def attender(packed: PackedGroups, config):
  """Attention over packed rows for `transformer.run_blocks`: (q, k, v, the block's window, sinks) -> [P, R, H, K].

  The implementation is that of `attention`. The memory that it would take decides between the ways of this module.

  Args:
    packed: rows, with their layout.
    config: the decoder's config.

  Raises:
    InputError: the implementation named in `config.attention` cannot compute this.
  """
  layout, columns = packed.layout, packed.segments.shape[1]
  platform, parts = sharding.platform(), sharding.sequence_shards()
  alone = layout.reach >= layout.prompt and parts == 1
  length = layout.prompt + layout.reach if alone else columns if platform == "tpu" else layout.chunk

  def attend(q, k, v, window, sinks=None):
    tokens = places(packed, window)
    name = whole_rows.chosen(config, length, q.shape[3], platform, whole_rows.obstacle_to_splitting(q, k))
    if name != "xla" and alone:
      return by_responses(q, k, v, packed, config, window=window, kernel=whole_rows.CAUSAL[name])
    size = _bytes_at_once(q, layout, name)
    if size > MAX_BYTES or parts > 1 and name == "xla":
      if config.attention not in ("auto", "xla"):
        raise InputError(
          f"compute.attention={name} needs a mask of {size / 2**20:.0f} MiB for rows of {columns} tokens; use auto"
        )
      settings = {"responses": layout.responses, "block": block_size(layout)}
      return blockwise.attention(q, k, v, tokens, config, sinks_H=sinks, **settings)
    if name == "splash":
      q, k, v = sharding.for_attention(q, k, v)
      return whole_rows.splash(q, k, v, functools.partial(attends, responses=layout.responses), tokens, tokens, config)
    joined = whole_rows.cudnn if name == "cudnn" else None
    return by_parts(q, k, v, packed, config, window=window, joined=joined, sinks_H=sinks)

  return attend


def block_size(layout) -> int:
  """Columns of a block: a quarter of the reach, since larger ones would hold many keys of other responses."""
  return min(max(layout.reach // 4, 128), 512)


def _bytes_at_once(q_PxRxHxK, layout, name: str) -> int:
  """Size of the largest array of scores, or of a mask, on a device."""
  rows, columns, heads, _ = q_PxRxHxK.shape
  if name == "splash":  # One row at a time.
    return columns * (columns // sharding.sequence_shards())
  rows, heads = rows // sharding.row_shards() or 1, heads // sharding.head_shards() or 1
  chunk, chunks_back = _chunking(layout, columns - layout.prompt)
  of_rows = rows * columns * (layout.prompt + chunk * (chunks_back + 1))
  return of_rows * (4 * heads if name == "xla" else 2)  # cuDNN adds the mask in half precision.


def by_responses(q_PxRxHxK, k_PxRxJxK, v_PxRxJxK, packed: PackedGroups, config, *, window, kernel):
  """Attention of each response after a copy of its prompt, as a plain causal sequence of L + reach columns.

  Keys and values are copied once. The prompt's own attention is computed with every response, a small part of all where
  responses are longer than prompts; that of its first response is taken.

  Args:
    q_PxRxHxK: rotated queries.
    k_PxRxJxK: rotated keys.
    v_PxRxJxK: values.
    packed: the rows' positions, segments and layout.
    config: the decoder's config.
    window: tokens that a query attends to, itself included, one of `config.windows` or `UNLIMITED`; None: all.
    kernel: causal attention of sequences: (q, k, v, config, window as a plain number or None) -> [B, L, H, K], with
      q, k and v [B, L, heads, K]; `attention.CAUSAL`.

  Returns:
    [P, R, H, K]; arbitrary but finite on padding.
  """
  layout = packed.layout
  distinct = list(dict.fromkeys(config.windows)) if window is not None else [None]
  index = 0
  if window is not None:
    index = jnp.argmax(jnp.array([UNLIMITED if w is None else w for w in distinct]) == window)

  def row(q_RxHxK, k_RxJxK, v_RxJxK, positions_R, segments_R, index):
    sequence_R, columns_BxT = _sequences(positions_R, segments_R, layout)
    apart = lambda x: x.at[columns_BxT].get(mode="fill", fill_value=0)
    attended = [functools.partial(kernel, config=config, window=w) for w in distinct]
    out_BxTxHxK = jax.lax.switch(index, attended, *map(apart, (q_RxHxK, k_RxJxK, v_RxJxK)))
    return out_BxTxHxK[sequence_R, positions_R]

  def rows(q, k, v, tokens, index):
    return jax.lax.map(lambda arrays: row(*arrays, index), (q, k, v, *tokens))

  arrays, tokens = (q_PxRxHxK, k_PxRxJxK, v_PxRxJxK), (packed.positions, packed.segments)
  return sharding.over_heads(rows, arrays, tokens, jnp.asarray(index))


def _sequences(positions_R, segments_R, layout):
  """Sequence of every column, and the column of every token of each sequence, R on padding: ([R], [k G, L + reach])."""
  columns, size = len(segments_R), layout.responses + 1
  prompt_R, member_R = segments_R // size, segments_R % size - 1
  sequence_R = jnp.where(segments_R < 0, 0, prompt_R * layout.responses + jnp.maximum(member_R, 0))

  def columns_of(count, index_R, here_R):
    empty = jnp.full((count, layout.prompt + layout.reach), columns)
    index_R = jnp.where(here_R & (segments_R >= 0), index_R, count)  # Out of range elsewhere, and dropped.
    return empty.at[index_R, positions_R].set(jnp.arange(columns), mode="drop")

  prompts_kxT = columns_of(layout.prompts, prompt_R, member_R < 0)
  own_BxT = columns_of(layout.prompts * layout.responses, sequence_R, member_R >= 0)
  return sequence_R, jnp.minimum(jnp.repeat(prompts_kxT, layout.responses, axis=0), own_BxT)


def by_parts(q_PxRxHxK, k_PxRxJxK, v_PxRxJxK, packed: PackedGroups, config, *, window=None, joined=None, sinks_H=None):
  """Attention of the prompts to themselves, and of the responses to prompt and own past.

  Args:
    q_PxRxHxK: rotated queries.
    k_PxRxJxK: rotated keys.
    v_PxRxJxK: values.
    packed: the rows' positions, segments and layout.
    config: the decoder's config: scale and soft-cap of the scores.
    window: tokens that a query attends to, itself included; None: all.
    joined: attention (q, k, v, mask, config) over both parts as one list of keys, the prompt's repeated for every
      chunk, for kernels that never hold the scores and have no sinks. None computes the two parts' scores separately.
    sinks_H: the heads' sinks, or None.

  Returns:
    [P, R, H, K]; arbitrary but finite on padding.
  """
  prompt, columns = packed.layout.prompt, packed.segments.shape[1] - packed.layout.prompt
  chunk, chunks_back = _chunking(packed.layout, columns)
  missing = -columns % chunk
  pad = lambda x, fill=0: jnp.pad(x, ((0, 0), (0, missing), *((0, 0),) * (x.ndim - 2)), constant_values=fill)
  of_prompt, of_responses = lambda x: x[:, :prompt], lambda x, fill=0: pad(x[:, prompt:], fill)
  past = lambda x, fill=0: _past(_chunks(of_responses(x, fill), chunk), chunks_back, fill)

  tokens, responses = places(packed, window), packed.layout.responses
  queries = jax.tree.map(lambda x: _chunks(of_responses(x, -1), chunk), tokens)
  prompts = jax.tree.map(of_prompt, tokens)
  sees_own_PxNxCxW = attends(queries, jax.tree.map(lambda x: past(x, -1), tokens), responses)
  sees_prompt_PxNxCxL = attends(queries, jax.tree.map(lambda x: x[:, None], prompts), responses)

  plain = functools.partial(layers.attention, sinks_H=sinks_H) if joined is None else joined
  attended = plain(
    of_prompt(q_PxRxHxK),
    of_prompt(k_PxRxJxK),
    of_prompt(v_PxRxJxK),
    attends(prompts, prompts, responses),
    config,
  )
  arrays = (
    _chunks(of_responses(q_PxRxHxK), chunk),
    of_prompt(k_PxRxJxK),
    of_prompt(v_PxRxJxK),
    past(k_PxRxJxK),
    past(v_PxRxJxK),
    sees_prompt_PxNxCxL,
    sees_own_PxNxCxW,
    config,
  )
  of_chunks = _apart(*arrays, sinks_H) if joined is None else _together(*arrays, joined)
  of_chunks = of_chunks.reshape(of_chunks.shape[0], columns + missing, *of_chunks.shape[3:])[:, :columns]
  return jnp.concatenate([attended, of_chunks], axis=1)


def _chunking(layout, columns: int) -> tuple[int, int]:
  """(C, number of earlier chunks that a query's own response can reach into); one chunk if these would be all."""
  back = -(-(layout.reach - 1) // layout.chunk)
  return (layout.chunk, back) if (back + 1) * layout.chunk < columns else (columns, 0)


def _chunks(x_PxS, chunk: int):
  return x_PxS.reshape(x_PxS.shape[0], -1, chunk, *x_PxS.shape[2:])


def _past(x_PxNxC, chunks_back: int, fill):
  """Every chunk preceded by its earlier chunks: [P, N, (chunks_back + 1) C, ...]."""
  chunks = x_PxNxC.shape[1]
  padding = [(0, 0)] * x_PxNxC.ndim
  padding[1] = (chunks_back, 0)
  padded = jnp.pad(x_PxNxC, padding, constant_values=fill)
  return jnp.concatenate([padded[:, start : start + chunks] for start in range(chunks_back + 1)], axis=2)


def _apart(q, prompt_k, prompt_v, own_k, own_v, sees_prompt, sees_own, config, sinks_H):
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
  if sinks_H is not None:
    sinks = at_least_float32(sinks_H).reshape(shared, 1, 1, -1, 1)
    top = jax.lax.stop_gradient(jnp.maximum(top, sinks))
  on_prompt, on_own = jnp.exp(to_prompt - top), jnp.exp(to_own - top)
  total = jnp.sum(on_prompt, axis=-1, keepdims=True) + jnp.sum(on_own, axis=-1, keepdims=True)
  total = total if sinks_H is None else total + jnp.exp(sinks - top)
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
