"""The policy's optimizer against optax's own parts, and what memory an update takes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from qempo_jax.train import optimizers
from qempo_jax.train import state as train_state

PARAMS = {"a": jnp.linspace(-1, 1, 300_000).reshape(3, -1), "norm": jnp.ones(5)}


def _adamw(**changes):
  settings = dict(learning_rate=0.1, warmup_steps=0, total_steps=9, final_fraction=1.0, b1=0.9, b2=0.9)
  return optimizers.adamw(**settings | dict(weight_decay=0.0, max_grad_norm=9.0) | changes)


@pytest.mark.parametrize("size", [0.0, 1e-5, 1.0, 30.0])
def test_clipping_equals_optax(size):
  gradient = jax.tree.map(lambda leaf: size * jnp.cos(leaf), PARAMS)
  ours, theirs = optimizers.clip_by_global_norm(1.0), optax.clip_by_global_norm(1.0)
  found = ours.update(gradient, ours.init(PARAMS))[0]
  expected = theirs.update(gradient, theirs.init(PARAMS))[0]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


def test_an_update_takes_no_memory_beside_what_it_updates():
  zeros = (jnp.zeros(()),) * 4
  optimizer = _adamw(weight_decay=0.1, max_grad_norm=1.0)
  state = train_state.TrainState(jnp.zeros(()), PARAMS, optimizer.init(PARAMS), *zeros)
  step = jax.jit(lambda *given: train_state.move_policy(*given, optimizer), donate_argnums=0)
  memory = step.lower(state, PARAMS, jnp.zeros(())).compile().memory_analysis()
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(PARAMS))
  assert memory.alias_size_in_bytes > 2.9 * size
  assert memory.temp_size_in_bytes < 0.1 * size


def test_matrices_alone_decay():
  params = {"layers": {"query": jnp.ones((2, 3)), "query_bias": jnp.ones(3), "input_norm": jnp.ones(3)}}
  optimizer = _adamw(weight_decay=0.5)
  updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
  np.testing.assert_allclose(updates["layers"]["query"], -0.05, rtol=1e-6)
  assert not np.any(updates["layers"]["query_bias"]) and not np.any(updates["layers"]["input_norm"])


@pytest.mark.parametrize("warmup", [0, 3])
def test_the_learning_rate_rises_to_its_peak_and_reaches_its_last_value_at_the_last_update(warmup):
  optimizer = _adamw(warmup_steps=warmup, final_fraction=0.2, b1=0.0, b2=0.0)
  state, sizes = optimizer.init(jnp.ones(1)), []
  for _ in range(10):
    update, state = optimizer.update(jnp.ones(1), state, jnp.ones(1))
    sizes.append(-float(update[0]))
  np.testing.assert_allclose([max(sizes), sizes[warmup], sizes[9]], [0.1, 0.1, 0.02], rtol=1e-5)
  assert np.all(np.diff(sizes[warmup:]) < 0) and np.all(np.diff(sizes[: warmup + 1]) > 0)
