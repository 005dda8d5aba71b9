"""The order of training: a resumed run sees the same bytes."""

import json

import jax
import numpy as np
import pytest

from qempo_jax.data import order
from qempo_jax.data import pair_tokens
from qempo_jax.errors import InputError

ROWS, BATCH, STEPS = 37, 8, 14  # three epochs, none of which ends with a batch
LENGTHS = np.random.default_rng(0).integers(2, 60, ROWS)


def _pairs():
  rng = np.random.default_rng(1)
  ids = lambda length: tuple(int(token) for token in rng.integers(1, 99, length))
  responses = [(ids(length), ids(length // 2 + 1)) for length in LENGTHS]
  return pair_tokens.PairTokens([{}] * ROWS, [list(ids(3)) for _ in LENGTHS], responses, 0, 0)


PAIRS = _pairs()


def _bytes(indices):
  packed, mask = pair_tokens.pack_pairs(PAIRS, indices, bucket=16, max_length=64)
  return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((packed, mask)))


def _new(window, seed=3, batch=BATCH):
  return order.Order(ROWS, batch_size=batch, seed=seed, lengths=LENGTHS, window=window)


@pytest.mark.parametrize("window", [0, 3])
def test_a_resumed_run_sees_the_same_bytes(window):
  whole = _new(window)
  expected = [whole.batch(step) for step in range(STEPS)]
  for stop in range(STEPS):
    state = json.loads(json.dumps(_new(window).state(stop)))  # as a checkpoint keeps it
    resumed = _new(window)
    assert resumed.resume(state) == stop
    for step in range(stop, STEPS):
      indices = resumed.batch(step)
      assert indices == expected[step]
      if stop in (0, 5):
        assert _bytes(indices) == _bytes(expected[step])


@pytest.mark.parametrize("window", [0, 2, 3])
def test_every_row_once_an_epoch(window):
  flat = [i for step in range(STEPS) for i in _new(window).batch(step)]
  for epoch in range(3):
    assert sorted(flat[epoch * ROWS : (epoch + 1) * ROWS]) == list(range(ROWS))
  assert flat[:ROWS] != flat[ROWS : 2 * ROWS]
  assert _new(window).batch(5) == _new(window).batch(5) != _new(window, seed=4).batch(5)


def test_the_plain_order_is_the_permutation_of_seed_and_epoch():
  expected = np.random.default_rng([3, 0]).permutation(ROWS)[:BATCH]
  assert _new(0).batch(0) == expected.tolist()


def test_sorting_windows_by_length_bounds_padding():
  rng = np.random.default_rng(0)
  lengths = np.exp(rng.normal(4, 0.8, 2000)).astype(int) + 1
  shares = {}
  for window in (0, 4, 32):
    found = order.Order(2000, batch_size=8, seed=0, lengths=lengths, window=window)
    batches = np.array([lengths[found.batch(step)] for step in range(250)])
    shares[window] = 1 - batches.sum() / (batches.max(axis=1) * 8).sum()
  assert shares[0] > 0.5 > shares[4] > shares[32] and shares[32] < shares[0] / 5, shares


def test_a_checkpoint_of_another_order_is_refused():
  with pytest.raises(InputError, match="seed was 3 and is 4"):
    _new(0, seed=4).resume(_new(0).state(2))
  with pytest.raises(InputError, match="batch_size was 8 and is 4, window was 2 and is 0"):
    _new(0, batch=4).resume(_new(2).state(2))
  with pytest.raises(InputError, match="no order of 0 rows"):
    order.Order(0, batch_size=1, seed=0)


def test_examples_are_dealt_to_rows_of_like_length():
  assert pair_tokens.dealt([10, 20, 30, 40, 50, 60], range(6), 1) == list(range(6))
  assert pair_tokens.dealt([10, 20, 30, 40, 50, 60], range(6), 2) == [5, 0, 4, 1, 3, 2]
  assert pair_tokens.dealt([10, 20, 30, 40, 50, 60], [5, 5, 1, 0], 2) == [5, 0, 5, 1]
  indices = list(range(32))
  rows = np.reshape(pair_tokens.dealt(LENGTHS, indices, 4), (-1, 4))
  assert sorted(rows.reshape(-1)) == indices
  assert np.ptp(LENGTHS[rows].sum(axis=1)) < np.ptp(LENGTHS[np.reshape(indices, (-1, 4))].sum(axis=1))
