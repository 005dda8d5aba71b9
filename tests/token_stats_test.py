"""Log-probability and entropy from hidden states, against SciPy on the whole logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from qempo_jax import sharding
from qempo_jax.token_stats import from_logits
from qempo_jax.token_stats import mask_columns
from qempo_jax.token_stats import token_stats


@pytest.fixture
def problem():
  keys = jax.random.split(jax.random.key(0), 3)
  hidden, unembedding = jax.random.normal(keys[0], (23, 16)), jax.random.normal(keys[1], (97, 16))
  return hidden, unembedding, jax.random.randint(keys[2], (23,), 0, 97)


@pytest.mark.parametrize(("chunk_size", "temperature"), [(5, 0.6), (1000, 1.0)])
def test_values_equal_scipy(problem, chunk_size, temperature):
  hidden, unembedding, targets = problem
  logits = np.asarray(hidden, np.float64) @ np.asarray(unembedding, np.float64).T / temperature
  stats = token_stats(*problem, temperature=temperature, chunk_size=chunk_size)
  expected = scipy.special.log_softmax(logits, axis=-1)
  np.testing.assert_allclose(stats.log_prob, expected[np.arange(23), targets], atol=1e-4)
  np.testing.assert_allclose(stats.entropy, scipy.stats.entropy(np.exp(expected), axis=-1), atol=1e-4)


def test_gradients_do_not_depend_on_the_chunks(problem):
  hidden, unembedding, targets = problem

  def weighted(hidden, unembedding, chunk_size):
    stats = token_stats(hidden, unembedding, targets, temperature=0.7, chunk_size=chunk_size)
    return jnp.sum(jnp.sin(jnp.arange(23)) * stats.log_prob + stats.entropy**2)

  gradient = jax.jit(jax.grad(weighted, (0, 1)), static_argnums=2)
  whole, chunked = (gradient(hidden, unembedding, size) for size in (23, 4))
  for a, b in zip(whole, chunked):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-4)


def test_impossible_tokens_add_no_entropy_and_no_nan():
  logits = jnp.asarray([[0.0, -jnp.inf, 0.0, -jnp.inf]])
  entropy = lambda x: from_logits(jnp.where(jnp.isinf(logits), logits, x), jnp.asarray([0])).entropy[0]
  value, gradient = jax.jit(jax.value_and_grad(entropy))(jnp.zeros((1, 4)))
  assert float(value) == pytest.approx(np.log(2)) and np.isfinite(gradient).all()


def _plain(hidden, unembedding, targets, temperature, softcap, num_tokens):
  """The formula on whole logits, by JAX's own derivative."""
  logits = jnp.matmul(hidden, unembedding.T, precision="highest")
  logits = logits if softcap is None else softcap * jnp.tanh(logits / softcap)
  return from_logits(mask_columns(logits / temperature, num_tokens), targets)


def _weighted(stats):
  places = jnp.arange(stats.log_prob.shape[0])
  return jnp.sum(jnp.sin(places) * stats.log_prob + jnp.cos(places) * stats.entropy + 0.1 * stats.entropy**2)


@pytest.mark.parametrize(("block", "softcap", "num_tokens"), [(96, None, None), (10, 3.0, 90), (1, None, 41)])
def test_blocks_of_the_vocabulary_change_nothing(problem, block, softcap, num_tokens):
  hidden, unembedding, targets = problem
  hidden, targets = 0.5 * hidden, targets % 41
  ours = lambda hidden, unembedding, temperature: token_stats(
    hidden,
    unembedding,
    targets,
    temperature=temperature,
    chunk_size=5,
    logit_softcap=softcap,
    num_tokens=num_tokens,
    max_logits=5 * block,
  )
  plain = lambda *arrays: _plain(*arrays[:2], targets, arrays[2], softcap, num_tokens)
  arrays = hidden, unembedding, jnp.float32(0.7)
  both = lambda f: jax.jit(lambda *x: (f(*x), jax.grad(lambda *y: _weighted(f(*y)), (0, 1, 2))(*x)))(*arrays)
  near = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1.0, float(np.abs(b).max())))
  jax.tree.map(near, both(ours), both(plain))


def test_memory_has_no_term_in_tokens_times_vocabulary():
  """The compiler's temporaries are a + b T + c V, with nothing beyond: no array grows with both (152k columns here)."""

  def temporary(tokens, vocab_size):
    loss = lambda *arrays: _weighted(
      token_stats(*arrays, jnp.zeros(tokens, jnp.int32), temperature=1.0, chunk_size=128, max_logits=2**18)
    )
    arrays = (jax.ShapeDtypeStruct((size, 8), jnp.float32) for size in (tokens, vocab_size))
    return jax.jit(jax.grad(loss, (0, 1))).lower(*arrays).compile().memory_analysis().temp_size_in_bytes

  small, long, wide, both = (
    temporary(*shape) for shape in ((512, 49_152), (2048, 49_152), (512, 152_064), (2048, 152_064))
  )
  assert abs(both - long - wide + small) < 2**12  # the [T, V] logits alone would be 632 MB here
  assert long - small < 1536 * 4 * (3 * 8 + 12)  # hidden states, and a few numbers a token
  assert wide - small < 102_912 * 4 * 3 * 8  # the unembedding's gradient and its like


@pytest.mark.usefixtures("x64")
def test_float32_gradients_equal_those_of_log_softmax_in_float64():
  keys = jax.random.split(jax.random.key(5), 4)
  arrays = [
    jax.random.normal(keys[0], (40, 32), jnp.float64),
    0.3 * jax.random.normal(keys[1], (3000, 32), jnp.float64),
  ]
  targets, weights = jax.random.randint(keys[2], (40,), 0, 3000), jax.random.normal(keys[3], (40,), jnp.float64)

  def exact(hidden, unembedding):
    log_probs = jax.nn.log_softmax(hidden @ unembedding.T)
    log_prob, entropy = log_probs[jnp.arange(40), targets], -jnp.sum(jnp.exp(log_probs) * log_probs, axis=1)
    return jnp.sum(weights * jnp.stack([log_prob, entropy]), axis=1)

  def ours(hidden, unembedding):
    stats = token_stats(hidden, unembedding, targets, temperature=1.0, chunk_size=16, max_logits=16 * 512)
    return jnp.sum(weights.astype(jnp.float32) * jnp.stack(stats), axis=1)

  expected = jax.jit(jax.jacrev(exact, (0, 1)))(*arrays)
  found = jax.jit(jax.jacrev(ours, (0, 1)))(*(x.astype(jnp.float32) for x in arrays))
  for a, b in zip(found, expected):
    assert a.dtype == jnp.float32
    for one, other in zip(a, b):  # of log-probabilities, of entropies
      np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * float(jnp.abs(other).max()))


def test_forward_mode_is_refused(problem):
  hidden, unembedding, targets = problem
  score = lambda hidden: token_stats(hidden, unembedding, targets, temperature=1.0, chunk_size=8).entropy
  with pytest.raises(TypeError, match="forward-mode"):
    jax.jvp(score, (hidden,), (hidden,))


def test_the_vocabulary_may_be_split_over_devices(problem):
  hidden, unembedding, targets = problem
  unembedding = unembedding[:96]
  mesh = sharding.make_mesh((1, 1, 8))
  split = jax.device_put(unembedding, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("tensor")))
  loss = lambda hidden, unembedding: _weighted(
    token_stats(hidden, unembedding, targets % 96, temperature=0.7, chunk_size=8, max_logits=40)
  )
  expected = jax.jit(jax.value_and_grad(loss, (0, 1)))(hidden, unembedding)
  step = jax.jit(sharding.on_mesh(jax.value_and_grad(loss, (0, 1)), mesh)).lower(hidden, split).compile()
  ours = step(hidden, split)
  near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)
  jax.tree.map(near, jax.device_get(ours), jax.device_get(expected))
  gathered = [line for line in step.as_text().splitlines() if "all-gather" in line and "= f32[96,16]" in line]
  assert not gathered  # no device has the whole matrix
