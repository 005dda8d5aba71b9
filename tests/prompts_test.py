"""The order of training, and rows from files."""

import pytest

from qempo_jax.data import prompts
from qempo_jax.errors import InputError


def test_every_row_once_an_epoch_in_an_order_of_its_own():
  epochs = [
    [i for step in range(start, start + 7) for i in prompts.batch_indices(step, 3, 21, seed=4)] for start in (0, 7)
  ]
  assert all(sorted(epoch) == list(range(21)) for epoch in epochs)
  assert epochs[0] != epochs[1]


def test_an_epoch_that_ends_within_a_batch():
  visited = [i for step in range(5) for i in prompts.batch_indices(step, 4, 5, seed=0)]
  assert sorted(visited[:5]) == sorted(visited[5:10]) == list(range(5))


def test_order_depends_on_the_seed_alone():
  assert prompts.batch_indices(3, 8, 50, seed=1) == prompts.batch_indices(3, 8, 50, seed=1)
  assert prompts.batch_indices(3, 8, 50, seed=1) != prompts.batch_indices(3, 8, 50, seed=2)


def test_jsonl_rows(tmp_path):
  path = tmp_path / "rows.jsonl"
  path.write_text('{"prompt": "a", "answer": 3}\n\n{"prompt": "b", "answer": 4}\n')
  assert prompts.load_rows(f"jsonl:{path}") == [
    {"split": "train", "prompt": "a", "answer": 3},
    {"split": "train", "prompt": "b", "answer": 4},
  ]


@pytest.mark.parametrize(
  ("text", "message"),
  [("{", "line 1 is not JSON"), ('{"prompt": "a"}\n{"text": "b"}', "line 2 has the format"), ("", "holds no rows")],
)
def test_bad_rows_are_named(tmp_path, text, message):
  path = tmp_path / "rows.jsonl"
  path.write_text(text)
  with pytest.raises(InputError, match=message):
    prompts.load_rows(f"jsonl:{path}")


def test_an_unknown_source_is_named():
  with pytest.raises(InputError, match="csv:x"):
    prompts.load_rows("csv:x")
