"""Profiled steps: exactly the requested ones, kept if the loop ends early, and reported if there are none."""

import jax
import pytest

from experiments import build
from experiments.run import profiling
from qempo_jax.errors import InputError
from tests.loops import toy

TWO = profiling.Profiling(steps=2, after=1)


def recorded(workdir) -> list[int]:
  """The numbers of the steps in the one profile there."""
  (path,) = (workdir / profiling.FOLDER).glob("plugins/profile/*/*.xplane.pb")
  planes = jax.profiler.ProfileData.from_file(str(path)).planes
  events = (event for plane in planes for line in plane.lines for event in line.events if event.name == "step")
  return sorted(dict(event.stats)["step_num"] for event in events)


def test_the_steps_asked_for_are_recorded_and_all_are_run(tmp_path):
  notes = []
  assert list(profiling.traced(range(4, 9), TWO, tmp_path, notes.append)) == [4, 5, 6, 7, 8]
  assert recorded(tmp_path) == [
    6,
    7,
  ]  # counted from 1, as in metrics.jsonl: two of them, after the first of this process
  assert notes == [f"steps 6 to 7 are profiled in {tmp_path / profiling.FOLDER}"]


def test_an_error_leaves_what_was_recorded(tmp_path):
  def loop():
    for step in profiling.traced(range(9), TWO, tmp_path, print):
      if step == 2:
        raise KeyError(step)

  with pytest.raises(KeyError):
    loop()
  assert 2 in recorded(tmp_path)
  (tmp_path / "again").mkdir()
  list(profiling.traced(range(3), TWO, tmp_path / "again", print))  # no profile of before is still open
  assert recorded(tmp_path / "again") == [2, 3]


def test_too_few_steps_are_said(tmp_path):
  notes = []
  assert list(profiling.traced(range(8, 9), TWO, tmp_path, notes.append)) == [8]
  assert not (tmp_path / profiling.FOLDER).exists()
  assert notes == ["no step is profiled: 1 are left, and logging.profile_after=1 go first"]


def test_none_are_recorded_by_default(tmp_path):
  notes = []
  assert list(profiling.traced(range(5), profiling.Profiling(0, 3), tmp_path, notes.append)) == list(range(5))
  assert not (tmp_path / profiling.FOLDER).exists() and not notes


@pytest.mark.parametrize("key", ["profile_steps", "profile_after"])
def test_a_negative_number_is_said_in_a_line(tmp_path, key):
  config = toy.config(tmp_path)
  config.logging[key] = -1
  with pytest.raises(InputError, match=f"config.logging.{key}=-1 must be at least 0"):
    build.run(config, toy.policy())
