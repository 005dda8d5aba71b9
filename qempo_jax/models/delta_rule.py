"""The gated delta rule of linear attention: a state of fixed size in place of a cache of keys and values.

    S_t = a_t (I - b_t k_t k_t') S_{t-1} + b_t k_t v_t',    o_t = S_t' q_t / sqrt(K),    a_t = e^(g_t)

A token first decays the state. It then replaces the share b_t of the value that the state returns for k_t by v_t. q_t
and k_t are divided by sqrt(|x|^2 + 1e-6) first.

`scan` computes a sequence in chunks. Let c_t be the sum of g from the chunk's first token to t, and S_0 the state
before the chunk. With U = [u_1, u_2, ...]', one row a token,

    S_t = e^(c_t) S_0 + sum_{s <= t} e^(c_t - c_s) k_s u_s'
    u_t = b_t (v_t - e^(c_t) S_0' k_t - sum_{s < t} e^(c_t - c_s) (k_t' k_s) u_s),

a system of equations for U whose matrix is lower triangular with a diagonal of ones. States exist at the bounds of
chunks only, and the gradient computes each chunk again: memory is linear in the sequence's length.

Sources: Yang, Kautz and Hatamizadeh, "Gated Delta Networks: Improving Mamba2 with Delta Rule", arXiv 2412.06464; Yang
et al., "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", arXiv 2406.06484, for the chunks.

Shape letters: B rows, L positions, C channels of a convolution or positions of a chunk, W width of a kernel, U = W - 1;
H heads of values and states, J heads of queries and keys, r = H / J; K width of keys, V width of values, N chunks. Key
head j serves the heads j r to j r + r - 1. All is computed and returned in float32, in float64 for float64 inputs.
"""

import functools

import jax
import jax.numpy as jnp

from qempo_jax.masking import at_least_float32

_EPSILON = 1e-6  # Added to the squared length of queries and keys.
_NONE = -1e30  # Logarithm of the weight of a later token: finite, so that gradients are not NaN.


@jax.named_scope("convolution")
def convolution(x_BxLxC, kernel_CxW, before_BxUxC):
  """Causal convolution of each channel, y_t = sum_w kernel_w x_{t - (W - 1) + w}; the last weight is the token's own.

  Args:
    x_BxLxC: inputs.
    kernel_CxW: weights of the channels.
    before_BxUxC: the W - 1 inputs before the first position; 0 at the start of a sequence.

  Returns:
    [B, L, C].
  """
  length, width = x_BxLxC.shape[1], kernel_CxW.shape[1]
  kernel = at_least_float32(kernel_CxW)
  x = jnp.concatenate([at_least_float32(before_BxUxC), at_least_float32(x_BxLxC)], axis=1)
  return sum(x[:, w : w + length] * kernel[:, w] for w in range(width))


@jax.named_scope("delta_rule")
def scan(q_BxLxJxK, k_BxLxJxK, v_BxLxHxV, log_decay_BxLxH, rate_BxLxH, state_BxHxKxV, valid_BxL, chunk: int = 64):
  """The gated delta rule over sequences.

  Args:
    q_BxLxJxK: queries.
    k_BxLxJxK: keys.
    v_BxLxHxV: values.
    log_decay_BxLxH: g, at most 0.
    rate_BxLxH: b, from 0 to 1.
    state_BxHxKxV: the states before the first position.
    valid_BxL: False on padding, which leaves the state as it is and returns numbers without meaning.
    chunk: positions of a chunk.

  Returns:
    (outputs [B, L, H, V], the states after the last position [B, H, K, V]).
  """
  rows, length, shared, _ = k_BxLxJxK.shape
  heads = v_BxLxHxV.shape[2]
  size = min(chunk, length)

  def chunks(x, *by_head):
    """[B, L, heads, ...] -> [N, B, heads, C, ...], padded with 0, with `by_head` in place of the heads."""
    x = jnp.pad(x, ((0, 0), (0, -length % size), *((0, 0),) * (x.ndim - 2)))
    x = x.reshape(rows, -1, size, *by_head, *x.shape[3:])
    return jnp.moveaxis(jnp.moveaxis(x, 1, 0), 2, 2 + len(by_head))

  valid = valid_BxL[..., None]
  q, k, v = _normalised_query(q_BxLxJxK), _normalised(k_BxLxJxK), at_least_float32(v_BxLxHxV)
  log_decay, rate = (jnp.where(valid, at_least_float32(x), 0) for x in (log_decay_BxLxH, rate_BxLxH))
  arrays = (chunks(q, shared), chunks(k, shared), *(chunks(x, shared, heads // shared) for x in (v, log_decay, rate)))
  state = at_least_float32(state_BxHxKxV)
  state_BxJxrxKxV = state.reshape(rows, shared, -1, *state.shape[2:])
  state_BxJxrxKxV, out = jax.lax.scan(jax.checkpoint(_chunk, prevent_cse=False), state_BxJxrxKxV, arrays)
  out_BxNxCxHxV = jnp.moveaxis(out, (0, 4), (1, 2))
  return out_BxNxCxHxV.reshape(rows, -1, *v.shape[2:])[:, :length], state_BxJxrxKxV.reshape(state.shape)


def _chunk(state_BxJxrxKxV, arrays):
  """(the states after a chunk, its outputs [B, J, r, C, V])."""
  q_BxJxCxK, k_BxJxCxK, v_BxJxrxCxV, log_decay_BxJxrxC, rate_BxJxrxC = arrays
  sums = _sums(log_decay_BxJxrxC)
  past_CxC = jnp.tri(log_decay_BxJxrxC.shape[-1], dtype=bool)
  between = sum(x[..., :, None] - x[..., None, :] for x in sums)
  decay_BxJxrxCxC = jnp.exp(jnp.where(past_CxC, between, _NONE))
  since_start, until_end = jnp.exp(sum(sums))[..., None], jnp.exp(sum(x[..., -1:] - x for x in sums))[..., None]
  recall = lambda x_BxJxCxK: since_start * _einsum("bjck,bjrkv->bjrcv", x_BxJxCxK, state_BxJxrxKxV)
  similarity = lambda x_BxJxCxK: decay_BxJxrxCxC * _einsum("bjck,bjdk->bjcd", x_BxJxCxK, k_BxJxCxK)[:, :, None]
  rate = rate_BxJxrxC[..., None]
  written_BxJxrxCxV = _solve(rate * similarity(k_BxJxCxK), rate * (v_BxJxrxCxV - recall(k_BxJxCxK)))
  out = recall(q_BxJxCxK) + _einsum("bjrcd,bjrdv->bjrcv", similarity(q_BxJxCxK), written_BxJxrxCxV)
  kept = since_start[..., -1:, :] * state_BxJxrxKxV
  return kept + _einsum("bjck,bjrcv->bjrkv", k_BxJxCxK, until_end * written_BxJxrxCxV), out


def _sums(log_decay):
  """Cumulative sums over the last axis in two parts, of multiples of 1 / 256 and of the rest.

  Differences of the first part are exact to 2^16, and those of the second are small. Differences of one float32 sum
  would lose the digits of weak decays that follow strong ones.
  """
  coarse = jax.lax.stop_gradient(jnp.round(log_decay * 256) / 256)
  return jnp.cumsum(coarse, axis=-1), jnp.cumsum(log_decay - coarse, axis=-1)


@jax.custom_vjp
def _solve(matrix, y):
  """The solution x [..., C, V] of (I + A) x = y, in which A is the part of the matrix [..., C, C] below its diagonal.

  The inverse takes products alone. Libraries on CPUs start threads for each small triangular solve, at 100 times its
  own time on a busy machine, and a compiler cannot shard a call to them.
  """
  return _solve_forward(matrix, y)[0]


def _solve_forward(matrix, y):
  inverse = _inverse(matrix)
  x = _product(inverse, y)
  return x, (inverse, x)


def _solve_backward(residuals, g):
  inverse, x = residuals
  dy = _product(jnp.swapaxes(inverse, -1, -2), g)
  return -jnp.tril(_product(dy, jnp.swapaxes(x, -1, -2)), -1), dy


_solve.defvjp(_solve_forward, _solve_backward)

# Errors of a solution's first rows enter all later ones, so that GPUs and TPUs must not round its products.
# The state passes through all tokens, so that a device's default of rounded operands would add up.
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
_product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def _inverse(matrix):
  """(I + A)^-1: blocks on the diagonal are inverted, and joined in pairs by -D^-1 C B^-1 below B^-1 and D^-1."""
  size = matrix.shape[-1]
  if size > 8 and size % 2 == 0:
    half = size // 2
    first, second = _inverse(jnp.stack([matrix[..., :half, :half], matrix[..., half:, half:]]))
    below = -_product(_product(second, matrix[..., half:, :half]), first)
    return jnp.concatenate(
      [
        jnp.concatenate([first, jnp.zeros_like(first)], axis=-1),
        jnp.concatenate([below, second], axis=-1),
      ],
      axis=-2,
    )
  # Small or odd sizes: all blocks of a width stay in one matrix.
  inverse, width = jnp.broadcast_to(jnp.eye(size, dtype=matrix.dtype), matrix.shape), 1
  while width < size:
    block = jnp.arange(size) // width
    below = jnp.where((block[:, None] % 2 == 1) & (block[:, None] == block + 1), matrix, 0)
    inverse = inverse - (below if width == 1 else _product(_product(inverse, below), inverse))
    width *= 2
  return inverse


@jax.named_scope("delta_rule")
def step(q, k, v, log_decay, rate, state):
  """The gated delta rule of one token.

  Args:
    q: queries [..., J, K].
    k: keys [..., J, K].
    v: values [..., H, V].
    log_decay: g [..., H], at most 0.
    rate: b [..., H], from 0 to 1.
    state: [..., H, K, V].

  Returns:
    (outputs [..., H, V], the new states).
  """
  repeat = lambda x: jnp.repeat(x, v.shape[-2] // x.shape[-2], axis=-2)
  q, k, v = repeat(_normalised_query(q)), repeat(_normalised(k)), at_least_float32(v)
  state = jnp.exp(at_least_float32(log_decay))[..., None, None] * at_least_float32(state)
  read = lambda x: jnp.sum(x[..., None] * state, axis=-2)
  written = at_least_float32(rate)[..., None] * (v - read(k))
  state = state + k[..., None] * written[..., None, :]
  return jnp.sum(q[..., None] * state, axis=-2), state


def _normalised(x):
  """x / sqrt(|x|^2 + 1e-6)."""
  x = at_least_float32(x)
  return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + _EPSILON)


def _normalised_query(x):
  """`_normalised`, and scaled by 1 / sqrt(K)."""
  return _normalised(x) * x.shape[-1] ** -0.5
