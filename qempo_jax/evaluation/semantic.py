"""Semantic diversity: figures of sentence embeddings, [texts, dimensions], and of kernels between texts.

They measure what the encoder encodes: topic well; truth, style and negation badly. `sentence_encoder.load` gives an
encoder that works without a network. Report the encoder with every figure: figures of two encoders are not comparable.
"""

import numpy as np

from qempo_jax.errors import InputError


def mean_pairwise_distance(embeddings: np.ndarray) -> float:
  """Mean over pairs of different texts of (1 - cos) / 2.

  With u the unit vectors, sum over pairs of cos = |sum u|^2 - n, so time is linear in the texts. Used as semantic
  diversity by Guo et al., "Benchmarking Linguistic Diversity of Large Language Models",
  https://arxiv.org/abs/2412.10271. Range 0 (all equal) to 0.5 n / (n - 1); unlike counts, its expectation does not
  depend on the number of texts. Two distant clusters score as high as many different texts. NaN for fewer than two
  texts.
  """
  unit = unit_rows(embeddings)
  count = len(unit)
  if count < 2:
    return float("nan")
  total = unit.sum(axis=0)
  cosine = (total @ total - np.einsum("nd,nd->", unit, unit)) / (count * (count - 1))
  return max(0.0, float((1 - cosine) / 2))


def vendi_score(kernel: np.ndarray, *, q: float = 1.0) -> float:
  """Vendi score of order q: the effective number of different texts under a similarity kernel.

    VS_q = (sum_i l_i^q)^(1 / (1 - q)),   l the eigenvalues of K / trace K;
    q = 1: exp(-sum l log l);   q = inf: 1 / max l;   q = 0: the rank.

  Friedman & Dieng, "The Vendi Score", https://arxiv.org/abs/2210.02410; orders: Pasarkar & Dieng, "Cousins of the Vendi
  Score", https://arxiv.org/abs/2310.12952. Range 1 to n; small q emphasises rare kinds, large q common ones.
  Eigenvalues below n times machine precision of the largest are rounding and count as 0; they would dominate at small
  q. It grows with n, and does not measure quality.

  Args:
    kernel: [texts, texts] symmetric, positive semidefinite, ones on the diagonal.
    q: order, 0 to inf.

  Raises:
    InputError: the kernel is not such a matrix, or q is negative.
  """
  kernel = np.asarray(kernel, float)
  if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or not kernel.size:
    raise InputError(f"A kernel is a square matrix, texts by texts, not of shape {kernel.shape}.")
  if not np.allclose(kernel, kernel.T, atol=1e-6) or not np.allclose(np.diagonal(kernel), 1, atol=1e-6):
    raise InputError("A Vendi kernel is symmetric with ones on its diagonal: normalise it first.")
  eigenvalues = np.linalg.eigvalsh(kernel)
  if eigenvalues[0] < -1e-6 * len(kernel):
    raise InputError(f"The kernel is not positive semidefinite (least eigenvalue {eigenvalues[0]:.3g}).")
  return _effective_number(eigenvalues, q, np.finfo(float).eps * len(kernel))


def vendi_score_of_embeddings(embeddings: np.ndarray, *, q: float = 1.0) -> float:
  """Vendi score with the cosine kernel, from the smaller of the two Gram matrices; see `vendi_score`."""
  embeddings = np.asarray(embeddings)
  unit = unit_rows(embeddings)
  gram = unit @ unit.T if len(unit) <= unit.shape[1] else unit.T @ unit
  # Embeddings in single precision have rounding of that size in their spectrum.
  eps = np.finfo(embeddings.dtype if np.issubdtype(embeddings.dtype, np.floating) else float).eps
  return _effective_number(np.linalg.eigvalsh(gram), q, eps * max(unit.shape))


def _effective_number(eigenvalues, q, tolerance):
  if not q >= 0:
    raise InputError(f"The order q of a Vendi score is {q}: it must be between 0 and inf.")
  shares = eigenvalues[eigenvalues > tolerance * eigenvalues.max()]
  shares = shares / shares.sum()
  if q == 0:
    return float(len(shares))
  if np.isinf(q):
    return float(1 / shares.max())
  logs = np.log(shares)
  if q == 1:
    return float(np.exp(-np.sum(shares * logs)))
  if abs(q - 1) < 0.5:  # sum l^q = 1 + sum l (l^(q-1) - 1), without cancellation near q = 1.
    return float(np.exp(np.log1p(np.sum(shares * np.expm1((q - 1) * logs))) / (1 - q)))
  top = (q * logs).max()
  return float(np.exp((top + np.log(np.sum(np.exp(q * logs - top)))) / (1 - q)))


def unit_rows(embeddings: np.ndarray) -> np.ndarray:
  """Rows scaled to length 1, in double precision.

  Raises:
    InputError: the embeddings are not a matrix, or a row is zero or not finite.
  """
  rows = np.asarray(embeddings, float)
  if rows.ndim != 2:
    raise InputError(f"Embeddings are [texts, dimensions], not of shape {rows.shape}.")
  lengths = np.linalg.norm(rows, axis=1, keepdims=True)
  if not np.all(np.isfinite(lengths)) or np.any(lengths == 0):
    raise InputError("An embedding is zero or not finite: it has no direction. Leave empty texts out.")
  return rows / lengths
