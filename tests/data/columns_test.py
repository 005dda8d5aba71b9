"""The hash of a run's rows: that of their JSON list, in the memory of one row."""

import hashlib
import json
import tracemalloc

import numpy as np
import pytest

from experiments.batches import reward_rows
from experiments.configured.reward_data import RewardData
from qempo_jax.data import columns


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_hash_is_that_of_the_whole_list(count):
  rows = [{"prompt": f"é {i}", "answers": (1, None), "at": b"x"} for i in range(count)]
  whole = json.dumps(rows, sort_keys=True, default=str).encode()
  assert columns.fingerprint(iter(rows)) == hashlib.sha256(whole).hexdigest()


def test_the_hash_of_pairs_is_that_of_the_whole_list():
  data = RewardData([[1, 2], [3]], [[[4], [5, 6]], [[7], []]], np.array([0.5, 0], np.float32), None, None, 0)
  parts, digest = dict.fromkeys(reward_rows.PARTS, data), hashlib.sha256()
  for part in reward_rows.PARTS:
    ids = [[p, *map(list, pair)] for p, pair in zip(data.prompts, data.responses)]
    digest.update(json.dumps([part, ids, data.margins.tolist()], default=int).encode())
  assert reward_rows.fingerprint(parts) == digest.hexdigest()


def test_the_hash_holds_one_row_at_a_time():
  rows = ({"prompt": "x" * 10**5} for _ in range(100))
  tracemalloc.start()
  try:
    columns.fingerprint(rows)
    assert tracemalloc.get_traced_memory()[1] < 2 * 10**6
  finally:
    tracemalloc.stop()
