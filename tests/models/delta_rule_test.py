"""The gated delta rule against a plain loop over its formula, its own single steps, and transformers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax.models import delta_rule

BATCH = 2


def inputs(length, shared, heads, width, value_width, seed=0, decay=1.0):
  """(q, k, v, log decays, rates, state), as float32 NumPy arrays."""
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.normal(size=(BATCH, *shape))
  q, k, v = normal(length, shared, width), normal(length, shared, width), normal(length, heads, value_width)
  log_decay = -decay * np.log1p(np.exp(normal(length, heads)))
  rate = 1 / (1 + np.exp(-normal(length, heads)))
  return [x.astype(np.float32) for x in (q, k, v, log_decay, rate, normal(heads, width, value_width))]


def loop(q, k, v, log_decay, rate, state, valid=None):
  """The formula, head by head and token by token, in float64."""
  q, k, v, log_decay, rate, state = (np.array(x, np.float64) for x in (q, k, v, log_decay, rate, state))
  out, (rows, length, heads, _) = np.zeros(v.shape), v.shape
  unit = lambda x: x / np.sqrt(np.sum(x * x) + 1e-6)
  for row, head, t in np.ndindex(rows, heads, length):
    if valid is None or valid[row, t]:
      shared = head // (heads // k.shape[2])
      query, key = unit(q[row, t, shared]), unit(k[row, t, shared])
      b, eye = rate[row, t, head], np.eye(len(key))
      old = np.exp(log_decay[row, t, head]) * (eye - b * np.outer(key, key)) @ state[row, head]
      state[row, head] = old + b * np.outer(key, v[row, t, head])
      out[row, t, head] = state[row, head].T @ query / np.sqrt(len(key))
  return out, state


def by_steps(q, k, v, log_decay, rate, state):
  turned = [jnp.moveaxis(x, 1, 0) for x in (q, k, v, log_decay, rate)]
  state, out = jax.lax.scan(lambda state, token: delta_rule.step(*token, state)[::-1], state, tuple(turned))
  return jnp.moveaxis(out, 0, 1), state


def assert_close(found, expected, tolerance=1e-5):
  """Differences are at most the tolerance times the largest number."""
  expected = np.asarray(expected)
  np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.max(np.abs(expected)))


scan = jax.jit(delta_rule.scan, static_argnames="chunk")
everything = lambda arrays: np.ones(arrays[3].shape[:2], bool)


@pytest.mark.parametrize(
  "length, shared, heads, width, value_width, chunk",
  [(37, 2, 2, 8, 4, 16), (24, 2, 6, 4, 8, 12), (7, 1, 2, 4, 4, 64)],
)
def test_scan_and_steps_equal_the_formula(length, shared, heads, width, value_width, chunk):
  arrays = inputs(length, shared, heads, width, value_width)
  expected = loop(*arrays)
  found = scan(*arrays, everything(arrays), chunk=chunk)
  for form in (found, jax.jit(by_steps)(*arrays)):
    for ours, reference in zip(form, expected):
      assert_close(ours, reference)


def test_padding_leaves_the_state():
  arrays = inputs(29, 1, 2, 8, 8)
  valid = np.ones((BATCH, 29), bool)
  valid[0, :9], valid[0, 13:16], valid[0, 25:], valid[1] = False, False, False, False
  out, state = scan(*arrays, valid, chunk=8)
  expected, expected_state = loop(*arrays, valid)
  assert_close(np.where(valid[..., None, None], out, 0), expected)
  assert_close(state[0], expected_state[0])
  np.testing.assert_array_equal(state[1], arrays[-1][1])
  assert np.all(np.isfinite(out))


def test_gradients_equal_those_of_steps():
  random = inputs(21, 2, 4, 8, 8)
  # The hardest systems of equations: all keys alike, full rates, no decay.
  hard = [random[0], np.broadcast_to(random[1][:, :1], random[1].shape), random[2], 0 * random[3], 0 * random[4] + 1]
  rng = np.random.default_rng(1)
  outer = rng.normal(size=random[2].shape), rng.normal(size=random[5].shape)

  def gradients(rule):
    loss = lambda *arrays: sum(jnp.sum(x * y) for x, y in zip(rule(*arrays), outer))
    return jax.jit(jax.grad(loss, argnums=tuple(range(6))))

  chunked = gradients(functools.partial(delta_rule.scan, valid_BxL=everything(random), chunk=16))
  stepped = gradients(by_steps)
  for arrays in (random, [*hard, random[5]]):
    for found, expected in zip(chunked(*arrays), stepped(*arrays)):
      assert_close(found, expected)


def test_strong_decays_are_finite_and_exact_beside_weak_ones():
  arrays = inputs(64, 1, 2, 8, 8, decay=0.01)
  arrays[3][:, :32] = -50
  found, state = scan(*arrays, everything(arrays))
  expected, expected_state = loop(*arrays)
  assert_close(found, expected)
  assert_close(state, expected_state)
  arrays[3][:] = -50
  loss = lambda *arrays: sum(map(jnp.sum, delta_rule.scan(*arrays, everything(arrays))))
  for gradient in jax.jit(jax.grad(loss, argnums=tuple(range(6))))(*arrays):
    assert np.all(np.isfinite(gradient))


def test_half_precision_computes_in_float32():
  arrays = [jnp.asarray(x, jnp.bfloat16) for x in inputs(9, 1, 1, 4, 4)]
  for found, expected in zip(scan(*arrays, everything(arrays), chunk=8), loop(*arrays)):
    assert found.dtype == jnp.float32
    assert_close(found, expected)


@pytest.mark.slow  # imports PyTorch; the formula and the golden logits stand in for it
def test_equals_transformers():
  torch = pytest.importorskip("torch")
  qwen = pytest.importorskip("transformers.models.qwen3_5.modeling_qwen3_5")
  arrays = inputs(35, 2, 2, 16, 8)
  ours = scan(*arrays, everything(arrays), chunk=16)
  *tokens, state = map(torch.tensor, arrays)
  options = dict(initial_state=state, output_final_state=True, use_qk_l2norm_in_kernel=True)
  for rule in (qwen.torch_chunk_gated_delta_rule, qwen.torch_recurrent_gated_delta_rule):
    for found, expected in zip(ours, rule(*tokens, **options)):
      assert_close(found, expected.numpy())


def test_convolution_equals_a_sum_over_earlier_inputs():
  rng = np.random.default_rng(0)
  x, kernel, before = rng.normal(size=(2, 9, 5)), rng.normal(size=(5, 4)), rng.normal(size=(2, 3, 5))
  joined = np.concatenate([before, x], axis=1)
  expected = np.stack([np.einsum("bwc,cw->bc", joined[:, t : t + 4], kernel) for t in range(9)], axis=1)
  assert_close(delta_rule.convolution(x, kernel, before), expected, 1e-6)
