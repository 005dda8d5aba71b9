"""One update of staleness: rewards computed during the update, the same result after any stop, and importance weights."""

import threading
import time

import jax
import numpy as np
import pytest

from experiments import build
from experiments.batches import draws
from experiments.batches import groups
from qempo_jax.errors import InputError
from tests.loops import killed_runs
from tests.loops import toy

STEPS = 6


def _run(folder, *, stale=1, every=-1):
  folder.mkdir(exist_ok=True)
  config = killed_runs.config(folder, STEPS)
  config.sampling.stale_steps, config.checkpoint.every = stale, every
  return toy.raw(toy.train(config, folder)), killed_runs.metrics(folder)


@pytest.fixture(scope="module")
def stale(tmp_path_factory):
  return _run(tmp_path_factory.mktemp("stale") / "run")


def _same(found, expected):
  jax.tree.map(np.testing.assert_array_equal, found[0], expected[0])
  assert found[1] == expected[1]


def test_a_stale_run_repeats_itself_and_says_how_stale(tmp_path, stale):
  _same(_run(tmp_path / "again"), stale)
  shares = [row["importance/effective_share"] for row in stale[1]]
  assert shares[0] == pytest.approx(1.0, abs=1e-5)  # drawn from the policy that learned from them
  assert all(0.1 < share < 0.99999 for share in shares[1:])
  fresh = _run(tmp_path / "fresh", stale=0)[1]
  assert not any("importance" in name for row in fresh for name in row)
  assert fresh[0]["reward"] == pytest.approx(stale[1][0]["reward"], rel=1e-5)  # its mean is weighted by those shares
  assert fresh[1]["reward"] != stale[1][1]["reward"]


@pytest.mark.parametrize("dies_at", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_a_stale_run_resumes_bit_by_bit(tmp_path, monkeypatch, stale, dies_at):
  with monkeypatch.context() as patch:
    toy.interrupt(patch, groups.Replay, "make_batch", at=dies_at + 1)
    with pytest.raises(KeyboardInterrupt):
      _run(tmp_path / "cut", every=dies_at)
  drawn, draw = [], draws.Draws._draw
  monkeypatch.setattr(draws.Draws, "_draw", lambda self, index, *rest: drawn.append(index) or draw(self, index, *rest))
  _same(_run(tmp_path / "cut", every=dies_at), stale)
  assert drawn == list(range(dies_at + 1, STEPS))  # the one that was drawn ahead is not drawn again


def _until(true, seconds):
  end = time.monotonic() + seconds
  while not true() and time.monotonic() < end:
    time.sleep(0.01)
  return true()


@pytest.mark.parametrize(("stale", "patience"), [(1, 60), pytest.param(0, 0.3, marks=pytest.mark.slow)])
def test_rewards_are_computed_beside_the_update_before_theirs(tmp_path, monkeypatch, stale, patience):
  """Every update waits for the next batch's scoring to begin, and that scoring for the update."""
  begun, updates, beside, compile_step = [], [], [], groups.compile_step

  def slow_reward(prompts, completions, **columns):
    begun.append(len(updates))
    if len(begun) > 1:
      beside.append(_until(lambda: len(updates) >= len(begun) - 1, patience) and begun[-1] < len(begun) - 1)
    return toy.reward(prompts, completions)

  def compiled(*args):
    step = compile_step(*args)

    def patient(*arguments):
      if len(updates) < STEPS - 1:  # the last has no batch behind it
        _until(lambda: len(begun) >= len(updates) + 2, patience)
      updates.append(1)
      return step(*arguments)

    return patient

  monkeypatch.setattr(groups, "compile_step", compiled)
  monkeypatch.setattr(toy, "slow_reward", slow_reward, raising=False)
  config = killed_runs.config(tmp_path, STEPS)
  config.sampling.stale_steps, config.checkpoint.every = stale, -1
  config.reward.function = "tests.loops.toy.slow_reward"
  toy.train(config, tmp_path)
  assert beside == [bool(stale)] * (STEPS - 1)


def failing_reward(prompts, completions, **columns):
  """A reward function with a mistake in it."""
  raise ValueError("no")


def test_a_mistake_in_the_thread_is_the_runs(tmp_path):
  config = killed_runs.config(tmp_path, STEPS)
  config.sampling.stale_steps, config.reward.function = 1, "tests.loops.draws_test.failing_reward"
  with pytest.raises(InputError, match="raised ValueError"):
    toy.train(config, tmp_path)
  assert not [thread for thread in threading.enumerate() if thread.name.startswith("rewards")]


def test_two_steps_of_staleness_are_refused(tmp_path):
  config = killed_runs.config(tmp_path, STEPS)
  config.sampling.stale_steps = 2
  with pytest.raises(InputError, match="sampling.stale_steps=2 must be at least 0 and at most 1"):
    build.run(config, toy.policy())
