"""Losses of scalars, besides the checks of `battery_test`: refused inputs, and signs of gradients."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax import losses
from tests.losses.battery_cases import LOSSES

SCALAR = [name for name, case in LOSSES.items() if case.mask is None]


@pytest.mark.parametrize("name", SCALAR)
def test_anything_but_scalars_is_refused(name):
  case = LOSSES[name]
  rows = [case.draw(np.random.default_rng(seed)) for seed in range(3)]
  with pytest.raises(AssertionError):
    case.call(*map(np.stack, zip(*rows, strict=True)), **case.hyper)


@pytest.mark.parametrize("name", LOSSES)
def test_hyper_parameters_are_keyword_only_and_without_defaults(name):
  parameters = inspect.signature(LOSSES[name].call).parameters.values()
  keyword_only = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
  assert {p.name for p in keyword_only} == set(LOSSES[name].hyper)
  assert all(p.default is p.empty for p in keyword_only)


def test_gradient_pushes_the_pair_apart_and_spares_the_reference():
  gradient = jax.grad(losses.preference_loss, argnums=(0, 1))(-2.0, -2.0, -1.0, -1.0, alpha=0.5, beta=0.2)
  np.testing.assert_allclose(gradient, (-0.25, 0.25), rtol=1e-6)


def test_nll_sums_response_tokens_only():
  log_probs, mask = jnp.array([-1.0, -2.0, -jnp.inf, jnp.nan]), jnp.array([1, 1, 0, 0])
  value, gradient = jax.value_and_grad(losses.nll_loss)(log_probs, mask)
  assert value == 3
  np.testing.assert_array_equal(gradient, [-1, -1, 0, 0])
  with pytest.raises(AssertionError):
    losses.nll_loss(log_probs, mask[:2])
