"""What every loss, advantage and diversity reward must pass; `battery_cases` lists them all.

The formula in NumPy and by hand, jit, vmap and scan, finite differences, half precision, masks, extremes, and
what permutations, shifts and scales do.
"""

import functools
import inspect

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest

from qempo_jax import advantages
from qempo_jax import diversity_rewards
from qempo_jax import losses
from tests.losses.battery_cases import CASES
from tests.losses.battery_cases import GROUPS
from tests.losses.battery_cases import KINDS
from tests.losses.battery_cases import LOSSES
from tests.losses.battery_cases import SIZE

ROWS = 8
every = pytest.mark.parametrize("name", CASES)
masked = pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.mask is not None])


@functools.cache
def jitted(name):
  return jax.jit(CASES[name].call)


@functools.cache
def row_by_row(name):
  """Jitted: values of a batch, and gradients of each row's sum to all its float inputs; values by scan too."""
  case = CASES[name]

  def one(args, hyper):
    def total(floats):
      whole = list(args)
      for place, x in zip(case.floats, floats, strict=True):
        whole[place] = x
      value = case.call(*whole, **hyper)
      return jnp.sum(value), value

    gradient, value = jax.grad(total, has_aux=True)([args[i] for i in case.floats])
    return value, gradient

  @jax.jit
  def run(batch, hyper):
    values, gradients = jax.vmap(one, in_axes=(0, None))(batch, hyper)
    _, scanned = jax.lax.scan(lambda c, row: (c, case.call(*row, **hyper)), 0, batch)
    return values, gradients, scanned

  return run


def drawn(name, seeds=range(ROWS)):
  return [CASES[name].draw(np.random.default_rng(seed)) for seed in seeds]


def stacked(rows, dtype=np.float64):
  batch = [np.stack([np.asarray(x) for x in column]) for column in zip(*rows, strict=True)]
  return [jnp.asarray(x, None if x.dtype == bool else dtype) for x in batch]


def relations(case):
  """Names of the relations to test; tokens and group members may be permuted, scalars not."""
  has_axis = any(np.ndim(x) for x in case.draw(np.random.default_rng(0)))
  return [*case.relations, *(["a permutation"] if has_axis else [])]


def test_every_public_function_is_here():
  public = {n for n in losses.__all__ if n.endswith("_loss")} | {"nll_anchor", "preference_margin"}
  assert set(LOSSES) == public
  found = {
    name
    for module in (advantages, diversity_rewards)
    for name, f in inspect.getmembers(module, inspect.isfunction)
    if f.__module__ == module.__name__ and not name.startswith("_")
  }
  assert set(GROUPS) == found


@every
def test_a_value_worked_out_by_hand(name):
  assert CASES[name].goldens
  for args, hyper, want in CASES[name].goldens:
    found = jitted(name)(*jax.tree.map(jnp.asarray, args), **hyper)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)


@every
def test_the_formula_by_loop_vmap_and_scan(x64, name):
  case, rows = CASES[name], drawn(name)
  want = [case.expected(*row, **case.hyper) for row in rows]
  assert np.ptp(want) > 1e-3
  values, _, scanned = row_by_row(name)(stacked(rows), case.hyper)
  plain = [case.call(*map(jnp.asarray, row), **case.hyper) for row in rows[:2]]
  close = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12)
  close(values, want)
  close(scanned, want)
  close(plain, want[:2])


@every
def test_gradients_are_finite_differences_or_zero(x64, name):
  case = CASES[name]
  row = list(map(jnp.asarray, drawn(name, [3])[0]))
  _, gradients, _ = row_by_row(name)(stacked(drawn(name)), case.hyper)
  for place, gradient in zip(case.floats, gradients, strict=True):
    if place in case.detached:
      np.testing.assert_array_equal(gradient, 0)
    else:
      assert np.any(gradient), place
  live = [i for i in case.floats if i not in case.detached]
  if live:

    def of_live(*values):
      whole = list(row)
      for place, x in zip(live, values, strict=True):
        whole[place] = x
      return jitted(name)(*whole, **case.hyper)

    check_grads(of_live, [row[i] for i in live], order=1, modes=["rev"], atol=1e-5, rtol=1e-5)


@every
def test_half_precision_is_computed_in_single(name):
  case, half = CASES[name], stacked(drawn(name), jnp.bfloat16)
  single = [x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x for x in half]
  values, gradients, _ = row_by_row(name)(half, case.hyper)
  wanted, wanted_gradients, _ = row_by_row(name)(single, case.hyper)
  assert values.dtype == jnp.float32
  np.testing.assert_allclose(values, wanted, rtol=1e-5, atol=1e-6)
  for place, found, want in zip(case.floats, gradients, wanted_gradients, strict=True):
    if case.kinds[place] == "length":  # counts, in whatever type: nothing differentiates them
      continue
    np.testing.assert_allclose(np.float32(found), want, rtol=1e-2, atol=1e-5)  # rounded once, at the end


@masked
def test_padding_may_hold_anything(name):
  case, clean, dirty = CASES[name], drawn(name), drawn(name)
  for row, filler in zip(dirty, 2 * (np.nan, np.inf, -np.inf, 1e30), strict=True):
    out = ~row[case.mask]
    for place in case.floats:
      if np.ndim(row[place]) == 2:
        row[place] = np.where(out | out[:, None], filler, row[place])
      elif np.ndim(row[place]):
        row[place] = np.where(out, filler, row[place])
  values, gradients, _ = row_by_row(name)(stacked(clean, np.float32), case.hyper)
  values_dirty, gradients_dirty, _ = row_by_row(name)(stacked(dirty, np.float32), case.hyper)
  np.testing.assert_array_equal(values_dirty, values)
  for gradient, found in zip(gradients, gradients_dirty, strict=True):
    np.testing.assert_array_equal(found, gradient)
    if gradient.ndim == 2:
      np.testing.assert_array_equal(np.where(stacked(clean, np.float32)[case.mask], 0, gradient), 0)


@masked
def test_nothing_unmasked_is_zero(name):
  case, rows = CASES[name], drawn(name)
  for row in rows:
    row[case.mask] = np.zeros(SIZE, bool)
    for place in case.floats:
      row[place] = np.full_like(row[place], np.nan) if np.ndim(row[place]) else row[place]
  for found in jax.tree.leaves(row_by_row(name)(stacked(rows, np.float32), case.hyper)):
    np.testing.assert_array_equal(found, 0)


@every
def test_finite_at_extremes(name):
  case, rows, rng = CASES[name], drawn(name), np.random.default_rng(0)
  for index, row in enumerate(rows):
    for place in case.floats:
      ends = KINDS[case.kinds[place]][1]
      size = np.shape(row[place])
      row[place] = np.full(size, ends[index % 2]) if index < 2 else rng.choice(ends, size)  # or without spread
  for found in jax.tree.leaves(row_by_row(name)(stacked(rows, np.float32), case.hyper)):
    assert np.all(np.isfinite(found))
    assert np.isfinite(np.sum(np.square(found, dtype=np.float32), dtype=np.float32))


@pytest.mark.parametrize("name", ["ppo_clip_loss", "grpo_loss", "dr_grpo_loss", "sequence_clip_loss", "gspo_loss"])
def test_ratios_grow_without_overflow(name):
  """Log-ratios of 10 to 90 a token, on the side that is never clipped: the squared gradient stays finite."""
  case = CASES[name]
  rows = [[np.zeros(SIZE), np.full(SIZE, -10.0 * k), -1e5 * np.ones(SIZE), np.ones(SIZE, bool)] for k in range(2, 10)]
  if case.kinds[2] == "reward":
    rows = [[new, old, a[0], mask] for new, old, a, mask in rows]
  for found in jax.tree.leaves(row_by_row(name)(stacked(rows, np.float32), case.hyper)):
    assert np.isfinite(np.sum(np.square(found, dtype=np.float32), dtype=np.float32))


@pytest.mark.parametrize("name", ["leave_one_out", "group_mean", "std_normalised"])
def test_a_group_without_spread_is_exactly_zero(name):
  hyper = dict(min_std=1e-8) if name == "std_normalised" else {}
  for value in (0.1, 0.3, 1000.1, -7e4 / 3):
    for kept in ([1, 1, 1, 1, 1], [0, 1, 1, 0, 1]):
      found = jitted(name)(jnp.full(SIZE, value, jnp.float32), jnp.array(kept, bool), **hyper)
      np.testing.assert_array_equal(found, 0)


@pytest.mark.parametrize(
  ("name", "relation"), [(n, r) for n, case in CASES.items() for r in relations(case)]
)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), t=st.floats(0.2, 5), order=st.permutations(range(SIZE)))
def test_relations(name, relation, seed, t, order):
  case, order = CASES[name], np.array(order)
  args, hyper = case.draw(np.random.default_rng(seed)), case.hyper
  if relation == "a permutation":
    reorder = lambda x: x if np.ndim(x) == 0 else x[order] if np.ndim(x) == 1 else x[order][:, order]
    moved, settings_ = [reorder(np.asarray(x)) for x in args], hyper
    out = reorder
  else:
    hyper = hyper | case.relations[relation].fixed
    moved, settings_ = case.relations[relation].change(args, hyper, t)
    out = lambda value: case.relations[relation].out(value, t, moved)
  with jax.enable_x64(True):
    run = lambda args, hyper: np.asarray(jitted(name)(*map(jnp.asarray, args), **hyper))
    np.testing.assert_allclose(run(moved, settings_), out(run(args, hyper)), rtol=1e-8, atol=1e-9)
