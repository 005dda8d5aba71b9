"""Tests of every loss, advantage and diversity reward; `battery_cases` lists them.

The formula in NumPy and by hand, jit and vmap, finite differences, masks, extremes, and what permutations, shifts and
scales do. One compiled program a function and precision serves all of them; no jit, scan and half precision are for one
function of each family.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax import advantages
from qempo_jax import losses
from tests.losses.battery_cases import CASES
from tests.losses.battery_cases import GROUPS
from tests.losses.battery_cases import KINDS
from tests.losses.battery_cases import LOSSES
from tests.losses.battery_cases import SIZE

ROWS = 8
every = pytest.mark.parametrize("name", CASES)
masked = pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.mask is not None])
REPRESENTATIVES = (
  "qempo_kl_loss",
  "length_normalised_preference_loss",
  "nll_loss",
  "policy_gradient_loss",
  "gspo_loss",
  "trajectory_balance_loss",
  "std_normalised",
  "kernel_set_diversity",
)


@functools.cache
def row_by_row(name):
  """Jitted: values of a batch, and gradients of each row's sum to all its float inputs."""
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

  return jax.jit(jax.vmap(one, in_axes=(0, None)))


def drawn(name, seeds=range(ROWS)):
  return [CASES[name].draw(np.random.default_rng(seed)) for seed in seeds]


def stacked(rows, dtype=np.float64):
  batch = [np.stack([np.asarray(x) for x in column]) for column in zip(*rows, strict=True)]
  return [jnp.asarray(x, None if x.dtype == bool else dtype) for x in batch]


def floats(hyper):
  return {key: float(value) for key, value in hyper.items()}


def padded(args, case):
  """Arguments of a golden in the battery's shapes: members beyond its own are masked."""
  whole, size = [], max(np.size(x) if np.ndim(x) == 1 else 1 for x in args)
  for x, like in zip(args, case.draw(np.random.default_rng(0)), strict=True):
    rank = np.ndim(like)
    x = np.broadcast_to(x, (size,) * rank)
    whole.append(np.pad(x, [(0, SIZE - size)] * rank) if rank else x)
  return whole


def test_every_public_function_is_here():
  public = {n for n in losses.__all__ if n.endswith("_loss")} | {"nll_anchor", "preference_margin"}
  assert set(LOSSES) == public
  found = {
    name
    for name, f in inspect.getmembers(advantages, inspect.isfunction)
    if f.__module__ == advantages.__name__ and not name.startswith("_")
  }
  assert found < set(GROUPS)


@every
def test_a_value_worked_out_by_hand(name):
  case = CASES[name]
  assert case.goldens
  for args, hyper, want in case.goldens:
    found = row_by_row(name)(stacked([padded(args, case)] * ROWS, np.float32), floats(hyper))[0][0]
    np.testing.assert_allclose(found[: np.size(want)] if np.ndim(want) else found, want, rtol=1e-5, atol=1e-6)


@every
def test_the_formula_under_jit_and_vmap(x64, name):
  case, rows = CASES[name], drawn(name)
  want = [case.expected(*row, **case.hyper) for row in rows]
  assert np.ptp(want) > 1e-3
  values, _ = row_by_row(name)(stacked(rows), floats(case.hyper))
  np.testing.assert_allclose(values, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_no_jit_and_scan_are_the_same(x64, name):
  case, rows = CASES[name], drawn(name)
  values, _ = row_by_row(name)(stacked(rows), floats(case.hyper))
  plain = [case.call(*map(jnp.asarray, row), **case.hyper) for row in rows[:2]]
  _, scanned = jax.lax.scan(lambda c, row: (c, case.call(*row, **case.hyper)), 0, stacked(rows))
  np.testing.assert_allclose(plain, values[:2], rtol=1e-10, atol=1e-12)
  np.testing.assert_allclose(scanned, values, rtol=1e-10, atol=1e-12)


@every
def test_gradients_are_finite_differences_or_zero(x64, name):
  """Of the formula in NumPy, in every input on its own, for the fourth row."""
  case, row = CASES[name], drawn(name, [3])[0]
  _, gradients = row_by_row(name)(stacked(drawn(name)), floats(case.hyper))
  for place, gradient in zip(case.floats, gradients, strict=True):
    if place in case.detached:
      np.testing.assert_array_equal(gradient, 0)
      continue
    assert np.any(gradient), place
    slopes = np.zeros(np.shape(row[place]))
    for at in np.ndindex(slopes.shape):
      ends = []
      for step in (1e-6, -1e-6):
        moved = [np.array(x) for x in row]
        moved[place][at] += step
        ends.append(np.sum(case.expected(*moved, **case.hyper)))
      slopes[at] = (ends[0] - ends[1]) / 2e-6
    np.testing.assert_allclose(gradient[3], slopes, atol=1e-5, rtol=1e-5)


def test_half_precision_is_computed_in_single():
  for name, case in CASES.items():
    half = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in stacked(drawn(name, [0]), jnp.bfloat16)]
    found = jax.eval_shape(lambda *x, case=case: case.call(*x, **case.hyper), *half)
    assert found.dtype == jnp.float32, name


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_half_precision_inputs_are_rounded_once(name):
  case, half = CASES[name], stacked(drawn(name), jnp.bfloat16)
  single = [x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x for x in half]
  values, gradients = row_by_row(name)(half, floats(case.hyper))
  wanted, wanted_gradients = row_by_row(name)(single, floats(case.hyper))
  np.testing.assert_allclose(values, wanted, rtol=1e-5, atol=1e-6)
  for place, found, want in zip(case.floats, gradients, wanted_gradients, strict=True):
    if case.kinds[place] == "length":  # counts of any type, without gradients
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
  values, gradients = row_by_row(name)(stacked(clean, np.float32), floats(case.hyper))
  values_dirty, gradients_dirty = row_by_row(name)(stacked(dirty, np.float32), floats(case.hyper))
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
  for found in jax.tree.leaves(row_by_row(name)(stacked(rows, np.float32), floats(case.hyper))):
    np.testing.assert_array_equal(found, 0)


@every
def test_finite_at_extremes(name):
  case, rows, rng = CASES[name], drawn(name), np.random.default_rng(0)
  for index, row in enumerate(rows):
    for place in case.floats:
      ends = KINDS[case.kinds[place]][1]
      size = np.shape(row[place])
      row[place] = np.full(size, ends[index % 2]) if index < 2 else rng.choice(ends, size)  # or without spread
  for found in jax.tree.leaves(row_by_row(name)(stacked(rows, np.float32), floats(case.hyper))):
    assert np.all(np.isfinite(found))
    assert np.isfinite(np.sum(np.square(found, dtype=np.float32), dtype=np.float32))


@pytest.mark.parametrize("name", ["ppo_clip_loss", "grpo_loss", "dr_grpo_loss", "sequence_clip_loss", "gspo_loss"])
def test_ratios_grow_without_overflow(name):
  """Log-ratios of 10 to 90 a token, on the side that is never clipped: the squared gradient stays finite."""
  case = CASES[name]
  rows = [[np.zeros(SIZE), np.full(SIZE, -10.0 * k), -1e5 * np.ones(SIZE), np.ones(SIZE, bool)] for k in range(2, 10)]
  if case.kinds[2] == "reward":
    rows = [[new, old, a[0], mask] for new, old, a, mask in rows]
  for found in jax.tree.leaves(row_by_row(name)(stacked(rows, np.float32), floats(case.hyper))):
    assert np.isfinite(np.sum(np.square(found, dtype=np.float32), dtype=np.float32))


@pytest.mark.parametrize("name", ["leave_one_out", "group_mean", "std_normalised"])
def test_a_group_without_spread_is_exactly_zero(name):
  hyper = dict(min_std=1e-8) if name == "std_normalised" else {}
  masks = np.array([[1, 1, 1, 1, 1], [0, 1, 1, 0, 1]], bool)
  rows = [[np.full(SIZE, value), kept] for value in (0.1, 0.3, 1000.1, -7e4 / 3) for kept in masks]
  np.testing.assert_array_equal(row_by_row(name)(stacked(rows, np.float32), hyper)[0], 0)


@every
def test_permutations_shifts_and_scales(x64, name):
  """Eight draws at a time, each relation at three sizes of the change; tokens and group members may be permuted."""
  case, rows = CASES[name], drawn(name, range(10, 10 + ROWS))
  run = lambda rows, hyper: np.asarray(row_by_row(name)(stacked(rows), floats(hyper))[0])
  close = functools.partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-9)
  for relation, (change, out, fixed) in case.relations.items():
    value = run(rows, case.hyper | fixed)
    for t in (0.3, 1.7, 4.9):
      changed = [change(row, case.hyper | fixed, t) for row in rows]
      wanted = [out(v, t, args) for v, (args, _) in zip(value, changed, strict=True)]
      close(run([args for args, _ in changed], changed[0][1]), wanted, err_msg=f"{relation}, {t}")
  order = np.random.default_rng(0).permutation(SIZE)
  reorder = lambda x: np.asarray(x)[(np.ix_(*[order] * np.ndim(x)))] if np.ndim(x) else x
  if any(np.ndim(x) for x in rows[0]):
    value = run(rows, case.hyper)
    close(
      run([list(map(reorder, row)) for row in rows], case.hyper), [reorder(v) for v in value], err_msg="permutation"
    )
