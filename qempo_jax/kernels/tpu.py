"""Sums over the vocabulary by a Pallas kernel for TPUs: product, soft-cap and online softmax without logits in HBM.

A tile of tokens stays in VMEM while the unembedding's rows stream past it once; only four numbers a token are written.
XLA's blocks write the logits first, because a sum over the vocabulary cannot be fused into the product. The gradient
has no such sum (given the normaliser it is elementwise in the logits), and is left to XLA's blocks, which fuse it.
"""

import functools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from qempo_jax.kernels import online_softmax
from qempo_jax.kernels.head import Head
from qempo_jax.kernels.head import softcap

TOKENS, COLUMNS = (512, 256, 128), (512, 256, 128)  # Sizes of a tile, best first.
_VMEM = 24 * 2**20  # Bytes of a tile with its buffers; the compiler may use a third more.


def sums(head: Head, hidden_TxD, rows_VxD, counted_V, targets_T, temperature) -> online_softmax.Sums:
  """Sums of every token over some rows of the unembedding.

  Args:
    head: dtype of the product's operands and soft-cap.
    hidden_TxD: final hidden states.
    rows_VxD: the rows, cast to the operands' dtype tile by tile.
    counted_V: 1 for rows that distributions are over, else 0.
    targets_T: target of each token, counted from the first row; out of range if it is not among the rows.
    temperature: divisor of the logits.

  Returns:
    Sums, each [1, T, 1].
  """
  (length, width), vocab_size = hidden_TxD.shape, rows_VxD.shape[0]
  tokens, columns = _fitting(width, rows_VxD.dtype, head.dtype)
  tokens, columns = min(tokens, length), min(columns, vocab_size)
  per_token = pl.BlockSpec((tokens, 1), lambda i, j: (i, 0))
  row_sums = pl.pallas_call(
    functools.partial(_kernel, head=head, vocab_size=vocab_size),
    grid=(pl.cdiv(length, tokens), pl.cdiv(vocab_size, columns)),
    in_specs=[
      pl.BlockSpec((1, 1), lambda i, j: (0, 0)),
      pl.BlockSpec((tokens, width), lambda i, j: (i, 0)),
      pl.BlockSpec((columns, width), lambda i, j: (j, 0)),
      pl.BlockSpec((1, columns), lambda i, j: (0, j)),
      per_token,
    ],
    out_specs=online_softmax.Sums(*[per_token] * 4),
    out_shape=online_softmax.Sums(*[jax.ShapeDtypeStruct((length, 1), jnp.float32)] * 4),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=_VMEM * 4 // 3
    ),
    interpret=head.interpret,
    name="token_sums",
  )(
    jnp.asarray(temperature, jnp.float32).reshape(1, 1),
    hidden_TxD.astype(head.dtype),
    rows_VxD,
    counted_V[None, :],
    targets_T[:, None],
  )
  return jax.tree.map(lambda x: x[None], row_sums)


def obstacle(width: int, stored_dtype, dtype) -> str | None:
  """Reason why the kernel cannot compute this; None if it can."""
  if _fitting(width, stored_dtype, dtype) is None:
    return f"keeps whole hidden states in VMEM, and no tile of width {width} fits"
  return None


def _fitting(width: int, stored_dtype, dtype) -> tuple[int, int] | None:
  """Best (tokens, columns) of a tile that fits: double-buffered inputs and a few logits."""
  stored, used = jnp.dtype(stored_dtype).itemsize, jnp.dtype(dtype).itemsize
  size = lambda c, b: width * (2 * c * used + b * (2 * stored + used)) + 6 * 4 * c * b
  return next(((c, b) for c in TOKENS for b in COLUMNS if size(c, b) <= _VMEM), None)


def _kernel(temperature_ref, hidden_ref, rows_ref, counted_ref, targets_ref, *sums_refs, head: Head, vocab_size: int):
  """One tile of tokens times one tile of rows; the sums stay in VMEM along the second axis of the grid."""
  index, refs = pl.program_id(1), online_softmax.Sums(*sums_refs)

  @pl.when(index == 0)
  def _():
    _write(refs, online_softmax.nothing(hidden_ref.shape[0]))

  product = jax.lax.dot_general(
    hidden_ref[...],
    rows_ref[...].astype(head.dtype),
    (((1,), (1,)), ((), ())),
    preferred_element_type=jnp.float32,
  )
  column = index * rows_ref.shape[0] + jax.lax.broadcasted_iota(jnp.int32, product.shape, 1)
  counted = (counted_ref[...] > 0) & (column < vocab_size)  # Rows beyond the last are arbitrary.
  logits = jnp.where(counted, softcap(product, head.softcap) / temperature_ref[...], online_softmax.NONE)
  before = online_softmax.Sums(*(ref[...] for ref in refs))
  _write(refs, online_softmax.add(before, logits, (column == targets_ref[...]) & counted))


def _write(refs, values):
  for ref, value in zip(refs, values):
    ref[...] = value
