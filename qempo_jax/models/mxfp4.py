"""Dequantises MXFP4: numbers of four bits, E2M1, in blocks of 32 that share a power of two.

    x = v 2^(scale - 127),    v = (-1)^(n >> 3) (0, 1/2, 1, 3/2, 2, 3, 4, 6)[n & 7]

Each byte holds two numbers n, the first one in its low half. Every x is a bfloat16 number. Source: the OCP Microscaling
Formats specification 1.0; Rouhani et al., "Microscaling Data Formats for Deep Learning", arXiv 2310.10537.
"""

import ml_dtypes
import numpy as np

NAME = "MXFP4"
BYTES = 16  # Of a block.
_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_BY_BYTE = np.stack(
  [np.concatenate([_VALUES, -_VALUES])[half] for half in (np.arange(256) & 15, np.arange(256) >> 4)], -1
)


def dequantise(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
  """Matrices of all experts, one after the other.

  Args:
    blocks: [experts, out, in / 32, 16], uint8.
    scales: [experts, out, in / 32], uint8.

  Returns:
    [experts, in, out], bfloat16; infinite where the scale is beyond the type's range.
  """
  experts, outputs, groups, _ = blocks.shape
  result = np.empty((experts, groups * 2 * BYTES, outputs), ml_dtypes.bfloat16)
  for matrix, block, scale in zip(result, blocks, scales):
    numbers = _BY_BYTE[block].reshape(outputs, groups, 2 * BYTES)
    with np.errstate(over="ignore"):
      matrix[:] = np.ldexp(numbers, scale.astype(np.int32)[..., None] - 127).reshape(outputs, -1).T
  return result
