"""Sums over the vocabulary by a Pallas kernel for NVIDIA GPUs, through Triton; see `kernels.tpu` for its benefit.

Each program processes a tile of tokens over its share of the vocabulary, with sums in registers. The vocabulary is
split into as many shares as fill the GPU, and the shares' sums are merged afterwards.
"""

import functools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp

from qempo_jax.kernels import online_softmax
from qempo_jax.kernels.head import Head
from qempo_jax.kernels.head import softcap

TOKENS, COLUMNS, WIDTH = 128, 128, 64  # Sizes of a tile; powers of two, as Triton requires.
PROGRAMS = 264  # Two for each multiprocessor of an H100.


def sums(head: Head, hidden_TxD, rows_VxD, counted_V, targets_T, temperature) -> online_softmax.Sums:
  """Sums of every token over some rows of the unembedding; arguments as in `kernels.tpu.sums`.

  Returns:
    Sums, each [S, T, 1]: of S shares of the rows, for `online_softmax.merge`.
  """
  length, vocab_size = len(targets_T), len(rows_VxD)
  padding = -length % TOKENS
  tiles, blocks = (length + padding) // TOKENS, pl.cdiv(vocab_size, COLUMNS)
  each = pl.cdiv(blocks, max(1, PROGRAMS // tiles))  # Blocks of a share.
  shares = pl.cdiv(blocks, each)
  out_shape = jax.ShapeDtypeStruct((shares, length + padding, 1), jnp.float32)
  by_share = pl.pallas_call(
    functools.partial(_kernel, head=head, each=each),
    grid=(tiles, shares),
    out_shape=online_softmax.Sums(*[out_shape] * 4),
    compiler_params=triton.CompilerParams(num_warps=8, num_stages=3 if rows_VxD.dtype.itemsize == 2 else 2),
    interpret=head.interpret,
    name="token_sums",
  )(
    jnp.asarray(temperature, jnp.float32).reshape(1, 1),
    jnp.pad(hidden_TxD.astype(head.dtype), ((0, padding), (0, 0))),
    rows_VxD,
    counted_V[None, :],
    jnp.pad(targets_T, (0, padding))[:, None],
  )
  return jax.tree.map(lambda x: x[:, :length], by_share)


def _kernel(temperature_ref, hidden_ref, rows_ref, counted_ref, targets_ref, *sums_refs, head: Head, each: int):
  """One tile of tokens times one share of the rows."""
  tokens, share = pl.ds(pl.program_id(0) * TOKENS, TOKENS), pl.program_id(1)
  (vocab_size, width), temperature = rows_ref.shape, temperature_ref[...]
  targets = targets_ref[tokens, :]

  def block(index, sums):
    start = (share * each + index) * COLUMNS
    inside = start + jnp.arange(COLUMNS)[:, None] < vocab_size

    def part(index, product):
      across = pl.ds(index * WIDTH, WIDTH)
      within = index * WIDTH + jnp.arange(WIDTH)[None, :] < width
      left = triton.load(hidden_ref.at[tokens, across], mask=within, other=0.0)
      right = triton.load(rows_ref.at[pl.ds(start, COLUMNS), across], mask=inside & within, other=0.0)
      return product + triton.dot(left, right.astype(head.dtype), trans_b=True)

    product = jax.lax.fori_loop(0, pl.cdiv(width, WIDTH), part, jnp.zeros((TOKENS, COLUMNS), jnp.float32))
    column = start + jnp.arange(COLUMNS)[None, :]
    counted = triton.load(counted_ref.at[:, pl.ds(start, COLUMNS)], mask=column < vocab_size, other=0) > 0
    logits = jnp.where(counted, softcap(product, head.softcap) / temperature, online_softmax.NONE)
    return online_softmax.add(sums, logits, (column == targets) & counted)

  final_sums = jax.lax.fori_loop(0, each, block, online_softmax.nothing(TOKENS))
  for ref, value in zip(sums_refs, final_sums):
    ref[share, tokens, :] = value
