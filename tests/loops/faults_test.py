"""Faults of the machine and of rewards, tried on real runs: each ends in one line or not at all, and loses no step that was saved."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs import base
from experiments import cli
from experiments.batches import reward_rows
from experiments.run import metrics_log
from experiments.run import workdir as workdirs
from qempo_jax import paths
from qempo_jax.errors import InputError
from qempo_jax.models import export
from tests.loops import killed_runs
from tests.loops import offline_toy
from tests.loops import toy
from tests.loops.durability_test import _break
from tests.loops.durability_test import _raw
from tests.loops.durability_test import _run
from tests.loops.durability_test import whole as whole

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def disk(tmp_path):
  """A disk of 4 MB."""
  place = tmp_path / "disk"
  place.mkdir()
  mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], capture_output=True)
  if mounted.returncode:
    pytest.skip("mounting a disk is not allowed here")
  yield place
  subprocess.run(["umount", "-l", str(place)], check=True)


def _fill(disk: pathlib.Path) -> None:
  """Fills all that is left of a disk."""
  with open(disk / "filler", "wb", buffering=0) as file:
    try:
      while file.write(b"0" * 512):
        pass
    except OSError:
      pass


def _remount(disk: pathlib.Path, mode: str) -> None:
  subprocess.run(["mount", "-o", f"remount,{mode}", str(disk)], check=True)


_FAULTS = {"full": _fill, "read-only": lambda disk: _remount(disk, "ro")}


def _wait_for(path: pathlib.Path) -> None:
  """Waits until a checkpoint, or another file, is on disk."""
  while not path.exists():
    time.sleep(0.01)


def _then(act):
  """A change of the third batch: none, but something happens."""
  return lambda batch: act() or batch


def _ends_alike(folder, whole, **changes):
  """The same command goes on to the run that nothing happened to."""
  state, recorder = _run(folder, **changes)
  assert "was restored" in recorder.notes[0] and recorder.notes[0].startswith("resuming at step")
  jax.tree.map(np.testing.assert_array_equal, _raw(state), whole[0])
  assert killed_runs.metrics(folder) == whole[1]


@pytest.mark.slow
@pytest.mark.parametrize(
  ("kind", "fault"),
  [("metrics", "full"), ("metrics", "read-only"), ("checkpoints", "full"), ("checkpoints", "read-only")],
)
def test_a_disk_that_takes_nothing_more_is_one_line_and_loses_no_saved_step(
  tmp_path, monkeypatch, disk, whole, kind, fault
):
  folder, changes = tmp_path / "w" / "run", {"checkpoint__folder": str(tmp_path / "checkpoints")}
  folder.mkdir(parents=True)
  if kind == "metrics":
    (folder / "metrics.jsonl").symlink_to(disk / "metrics.jsonl")
  else:
    changes["checkpoint__folder"] = str(disk / "checkpoints")
  with monkeypatch.context() as patch:
    _break(
      patch, (4,), _then(lambda: _wait_for(pathlib.Path(changes["checkpoint__folder"]) / "2") or _FAULTS[fault](disk))
    )
    with pytest.raises(InputError, match="(cannot|could not) be written .*start the same command again") as caught:
      _run(folder, **changes)
    assert "\n" not in str(caught.value)
  _remount(disk, "rw")
  (disk / "filler").unlink(missing_ok=True)
  _ends_alike(folder, whole, **changes)


def _loses(folder: str, disk: str, fault: str) -> None:
  """A program whose disk of checkpoints takes nothing from the fourth step on."""

  def main(config, workdir, dry_run):
    saved, fail = pathlib.Path(disk) / "checkpoints", _FAULTS[fault]
    _break(pytest.MonkeyPatch(), (4,), _then(lambda: _wait_for(saved / "2") or fail(pathlib.Path(disk))))
    _run(workdir, checkpoint__folder=str(saved))

  flags = ["--config=configs/online_qempo_kl.py", f"--workdir={folder}"]
  cli.run(main, description="", example="", argv=flags)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_program_says_one_line_about_a_disk_of_checkpoints_that_takes_nothing_and_exits_with_2(tmp_path, disk, fault):
  program = (
    f"from tests.loops import faults_test; faults_test._loses({str(tmp_path / 'run')!r}, {str(disk)!r}, {fault!r})"
  )
  # A thread of Orbax that waits for a folder which nobody could make would keep the process for five minutes.
  done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=290)
  said = done.stderr.splitlines()
  assert done.returncode == 2 and [line for line in said if "error" in line.lower()] == said[-1:], done.stderr
  assert "that of step 2 is intact" in said[-1] and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
  ("fault", "flush_seconds"),
  [("full", 0.0), ("full", 120.0), ("read-only", 120.0)],  # with 120, at the end of the run
)
def test_a_disk_that_takes_no_events_costs_the_events_alone(tmp_path, monkeypatch, disk, whole, fault, flush_seconds):
  folder = tmp_path / "run"
  folder.mkdir()
  (folder / "tensorboard").symlink_to(disk, target_is_directory=True)
  monkeypatch.setattr(metrics_log, "_FLUSH_SECONDS", flush_seconds)
  if fault == "full":  # before the first of them is on the disk
    _break(monkeypatch, (1,), _then(lambda: _fill(disk)))
  else:  # from the start: Linux refuses this for a disk with a file open for writing
    _remount(disk, "ro")
  state, recorder = _run(folder)
  jax.tree.map(np.testing.assert_array_equal, _raw(state), whole[0])
  assert killed_runs.metrics(folder) == whole[1]
  note = "No space left" if fault == "full" else "Read-only"
  (told,) = recorder.notes[1:]
  assert note in told and "no more TensorBoard events" in told


@pytest.mark.slow
@pytest.mark.parametrize("place", ["run/checkpoints", "checkpoints"])
def test_a_workdir_that_is_removed_under_a_run_is_one_line(tmp_path, monkeypatch, whole, place):
  folder, saved = tmp_path / "run", tmp_path / place
  with monkeypatch.context() as patch:
    _break(patch, (4,), _then(lambda: _wait_for(saved / "2") or shutil.rmtree(folder)))
    with pytest.raises(InputError, match="No such file .*removed under the run: .* starts at step 1$"):
      _run(folder, checkpoint__folder=str(saved))
  state, recorder = _run(folder, checkpoint__folder=str(saved))
  jax.tree.map(np.testing.assert_array_equal, _raw(state), whole[0])
  elsewhere = "resuming at step 3: step 2 was restored; metrics.jsonl lacks 2 rows before it"
  assert recorder.notes == ["starting at step 1" if place.startswith("run") else elsewhere]
  assert killed_runs.metrics(folder) == whole[1][0 if place.startswith("run") else 2 :]


def _files(folder: pathlib.Path) -> dict[pathlib.Path, bytes]:
  return {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


@pytest.mark.slow
@pytest.mark.parametrize("during", ["a step", "a save"])
@pytest.mark.parametrize("place", ["run/checkpoints", "checkpoints"])
@pytest.mark.parametrize("other", ["empty", "another run's"])
def test_a_workdir_that_is_replaced_under_a_run_is_one_line_and_stays_as_it_is(
  tmp_path, monkeypatch, whole, other, place, during
):
  folder, aside, theirs = tmp_path / "run", tmp_path / "aside", tmp_path / "theirs"
  changes, before = {"checkpoint__folder": str(tmp_path / place)}, {}
  _run(theirs) if other != "empty" else theirs.mkdir()

  def replace():
    if not before:
      folder.rename(aside)
      theirs.rename(folder)
      before.update({folder: b""} | _files(folder))
      (tmp_path / "done").touch()

  finalize = ocp.PyTreeCheckpointHandler.finalize

  def replace_in_save(self, directory):
    if directory.parent.name.startswith("4."):
      replace()
    return finalize(self, directory)

  with monkeypatch.context() as patch:
    if during == "a save":
      patch.setattr(ocp.PyTreeCheckpointHandler, "finalize", replace_in_save)
      _break(patch, (5,), _then(lambda: _wait_for(tmp_path / "done")))
    else:
      _break(patch, (4,), _then(lambda: _wait_for(tmp_path / place / "2") or replace()))
    config = killed_runs.config(tmp_path, 6)
    config.checkpoint.folder = changes["checkpoint__folder"]
    workdirs.open_workdir(folder, config)
    with pytest.raises(InputError, match="was replaced under the run|directory does not exist") as caught:
      _run(folder, **changes)
    assert "\n" not in str(caught.value)
  assert {folder: b""} | _files(folder) == before
  shutil.rmtree(folder)
  aside.rename(folder)
  _ends_alike(folder, whole, **changes)


@pytest.mark.slow
def test_checkpoints_that_are_removed_under_a_run_are_followed_by_the_next(tmp_path, monkeypatch, whole):
  folder = tmp_path / "run"
  saved = folder / "checkpoints"
  _break(monkeypatch, (4,), _then(lambda: _wait_for(saved / "2") or shutil.rmtree(saved)))
  state, _ = _run(folder)
  jax.tree.map(np.testing.assert_array_equal, _raw(state), whole[0])
  assert sorted(path.name for path in saved.iterdir()) == ["4", "6"] and killed_runs.metrics(folder) == whole[1]


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_every_other_file_on_such_a_disk_is_one_line_and_nothing_half_written_stays(disk, fault):
  (disk / "a.json").write_text("old")
  params = jax.tree.map(np.asarray, toy.policy().params)
  _FAULTS[fault](disk)
  before = sorted(disk.rglob("*"))
  for write in (
    lambda: paths.write_atomically(disk / "a.json", "new" * 10_000),
    lambda: workdirs.open_workdir(disk / "w", base.get_config()),
    lambda: export.export_model(disk / "model", params, toy.MODEL),
    lambda: reward_rows._reserve(disk / "frozen.float32", 2**20),
  ):
    with pytest.raises(InputError) as caught:
      write()
    assert "No space left" in str(caught.value) or "Read-only" in str(caught.value)
  assert (disk / "a.json").read_text() == "old"
  new = [path for path in disk.rglob("*") if path.is_file() and path not in before]
  assert [path for path in new if path.name != workdirs.LOCK or path.stat().st_size] == []


@pytest.mark.slow
def test_data_that_goes_away_under_a_run_changes_nothing(tmp_path, monkeypatch, whole):
  _break(monkeypatch, (3,), _then((tmp_path / "prompts.jsonl").unlink))
  state, _ = _run(tmp_path / "run")
  jax.tree.map(np.testing.assert_array_equal, _raw(state), whole[0])


def prints(prompts, completions, **columns):
  """A reward that prints a megabyte."""
  print("x" * 2**20)
  return toy.reward(prompts, completions)


def forks(prompts, completions, **columns):
  """A reward that leaves a process behind, which ends much later."""
  if not os.fork():
    os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(5)"])
  return toy.reward(prompts, completions)


def eats(prompts, completions, **columns):
  """A reward that wants a petabyte."""
  return [bytearray(2**50)]


def hangs(prompts, completions, **columns):
  """A reward that hangs in its third call."""
  killed_runs.scored.append([])
  if len(killed_runs.scored) == 3:
    print("hanging", flush=True)
    time.sleep(10_000)
  return toy.reward(prompts, completions)


@pytest.mark.slow
@pytest.mark.parametrize("function", [prints, forks])
def test_a_reward_that_prints_or_forks_changes_nothing(tmp_path, whole, function):
  state, _ = _run(tmp_path / "run", reward__function=f"tests.loops.faults_test.{function.__name__}")
  jax.tree.map(np.testing.assert_array_equal, _raw(state), whole[0])


@pytest.mark.slow
def test_a_reward_that_eats_memory_is_one_line(tmp_path):
  with pytest.raises(InputError, match="reward function eats raised MemoryError"):
    _run(tmp_path / "run", reward__function="tests.loops.faults_test.eats")


def _live(folder: str) -> None:
  recorder = offline_toy.Recorder()
  config = killed_runs.config(pathlib.Path(folder).parent, 6)
  config.reward.function, config.faults.grace_seconds = "tests.loops.faults_test.hangs", 3.0
  config.checkpoint.asynchronous = False
  toy.train(config, pathlib.Path(folder), toy.policy(), recorder)


@pytest.mark.slow
def test_a_reward_that_hangs_does_not_outlive_a_notice(tmp_path):
  (tmp_path / "run").mkdir()
  program = f"from tests.loops import faults_test; faults_test._live({str(tmp_path / 'run')!r})"
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
  with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, **pipes) as process:
    try:
      assert process.stdout.readline() == "hanging\n"
      process.send_signal(signal.SIGTERM)
      _, said = process.communicate(timeout=60)
    finally:
      process.kill()
  assert process.returncode == 0 and "within 3 s of SIGTERM; the checkpoint of step 2 stands" in said


@pytest.mark.slow
def test_memory_stays_level_over_400_steps(tmp_path):
  resident = lambda: int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
  config, seen = killed_runs.config(tmp_path, 400), {}
  config.checkpoint.every, config.replay.capacity = 100, 50
  recorder = offline_toy.Recorder()
  recorder.step = lambda step, metrics: seen.update({step: resident()})
  toy.train(config, tmp_path, toy.policy(), recorder)
  print({step: round(seen[step]) for step in range(50, 401, 50)})
  assert seen[400] - seen[150] < 10  # MB
