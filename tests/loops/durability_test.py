"""Events that a run survives: a notice to stop, failing updates, a full disk, a cut line, another tokenizer or data."""

import json
import os
import pty
import resource
import signal
import struct
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.event_pb2 import SessionLog

from experiments import build
from experiments import evaluate
from experiments import plan as plans
from experiments.batches import groups
from experiments.configured import constraints as build_constraints
from experiments.run import metrics_file
from experiments.run import metrics_log
from experiments.run import preemption
from experiments.run import saving
from qempo_jax.errors import InputError
from qempo_jax.train import checkpoint
from qempo_jax.train import state as train_state
from tests.loops import killed_runs
from tests.loops import offline_toy
from tests.loops import toy


def _run(folder, **changes):
  folder.mkdir(exist_ok=True)
  config = killed_runs.config(folder.parent, 6)
  for key, value in changes.items():
    group, name = key.split("__")
    config[group][name] = value
  recorder = offline_toy.Recorder()
  return toy.train(config, folder, toy.policy(), recorder), recorder


def _raw(state):
  return jax.device_get(state.replace(rng=jax.random.key_data(state.rng)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """The run that nothing happened to, as (its state, its metrics)."""
  folder = tmp_path_factory.mktemp("durability") / "whole"
  state, _ = _run(folder)
  return _raw(state), killed_runs.metrics(folder)


def _break(monkeypatch, steps, what):
  """At these calls of the loop's `make_batch`, from 1, `what` gets the batch and returns another."""
  calls, make_batch = [], groups.Replay.make_batch

  def broken(self, *args):
    calls.append(1)
    batch = make_batch(self, *args)
    return what(batch) if len(calls) in steps else batch

  monkeypatch.setattr(groups.Replay, "make_batch", broken)


def _signal_ourselves(batch):
  os.kill(os.getpid(), signal.SIGTERM)
  return batch


def _infinite_rewards(batch):
  return batch.replace(rewards={name: np.full_like(values, np.inf) for name, values in batch.rewards.items()})


def test_a_notice_saves_exits_with_0_and_the_same_command_goes_on(tmp_path, monkeypatch, whole):
  with monkeypatch.context() as patch:
    _break(patch, (3,), _signal_ourselves)
    started = time.monotonic()
    with pytest.raises(SystemExit) as stopped:
      _run(tmp_path / "run", checkpoint__every=0)
    assert stopped.value.code == 0 and time.monotonic() - started < 100
  assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
  assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["3"]
  state, recorder = _run(tmp_path / "run", checkpoint__every=0)
  assert recorder.notes == ["resuming at step 4: step 3 was restored"]
  jax.tree.map(np.testing.assert_array_equal, _raw(state), whole[0])
  assert killed_runs.metrics(tmp_path / "run") == whole[1]


def test_the_first_ctrl_c_saves_and_the_second_waits_only_for_the_checkpoint_being_written(
  tmp_path, monkeypatch, whole
):
  interrupt = lambda batch: os.kill(os.getpid(), signal.SIGINT) or batch
  before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
  try:
    with monkeypatch.context() as patch:
      _break(patch, (3,), interrupt)
      with pytest.raises(SystemExit) as stopped:
        _run(tmp_path / "run", checkpoint__every=0)
    assert stopped.value.code == 130 and os.listdir(tmp_path / "run" / "checkpoints") == ["3"]
    with monkeypatch.context() as patch:
      _break(patch, (1,), lambda batch: interrupt(interrupt(batch)))
      with pytest.raises(KeyboardInterrupt):
        _run(tmp_path / "run", checkpoint__every=0)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
  finally:
    signal.signal(signal.SIGINT, before)
  state, recorder = _run(tmp_path / "run", checkpoint__every=0)
  assert recorder.notes == ["resuming at step 4: step 3 was restored"]
  jax.tree.map(np.testing.assert_array_equal, _raw(state), whole[0])
  assert killed_runs.metrics(tmp_path / "run") == whole[1]


HUNG_UP = """
import signal, sys, time
from experiments.run import preemption
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup these tests inherit that it is ignored
with preemption.Notice(0, lambda: "") as notice:
  print("ready", flush=True)
  while not notice.came(1):
    time.sleep(0.01)
  print("a line for a terminal that is gone", flush=True)
  open(sys.argv[1], "w").write("saved")
sys.exit(notice.exit_code)
"""


def test_a_run_saves_when_its_terminal_closes(tmp_path):
  ours, theirs = pty.openpty()
  command = [sys.executable, "-c", HUNG_UP, str(tmp_path / "out")]
  with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True) as process:
    os.close(theirs)
    said = b""
    while not said.endswith(b"\n"):
      said += os.read(ours, 100)
    assert said.startswith(b"ready")
    os.close(ours)
    process.send_signal(signal.SIGHUP)
    try:
      assert process.wait(timeout=60) == 129
    finally:
      process.kill()
  assert (tmp_path / "out").read_text() == "saved"


def test_a_checkpoint_is_due_by_time_as_well(tmp_path, monkeypatch):
  clock = iter(range(0, 100_000, 240))  # four minutes between any two looks
  saver = _saver(tmp_path, [], minutes=10.0)
  monkeypatch.setattr(saving.time, "monotonic", lambda: saver._saved_at + next(clock))
  assert [saver.due(step) for step in (-3, -2, -1, 0)] == [False, False, False, True]


def test_a_notice_without_checkpoints_says_what_is_lost(tmp_path, monkeypatch):
  _break(monkeypatch, (2,), _signal_ourselves)
  notes = []
  monkeypatch.setattr(offline_toy.Recorder, "note", lambda self, line: notes.append(line))
  with pytest.raises(SystemExit):
    _run(tmp_path / "run", checkpoint__every=-1)
  assert notes[0] == "starting at step 1"
  assert notes[-1] == "told to stop: step 2 is lost, since checkpoint.every=-1 saves nothing"


def test_the_grace_period_ends(monkeypatch, capsys):
  codes = []
  monkeypatch.setattr(preemption.os, "_exit", codes.append)
  with preemption.Notice(0.05, lambda: "nothing is saved") as notice:
    assert not notice.came(1)
    os.kill(os.getpid(), signal.SIGTERM)
    assert notice.came(2) and not codes
    time.sleep(0.5)
  assert codes == [0] and "within 0.05 s of SIGTERM; nothing is saved" in capsys.readouterr().err
  with preemption.Notice(0.05, lambda: "nothing is saved"):
    os.kill(os.getpid(), signal.SIGTERM)
  time.sleep(0.3)
  assert codes == [0]  # a loop that ended in time is left alone


def test_a_broken_update_is_skipped_and_counted(tmp_path, monkeypatch, whole):
  states, call = [], groups.Groups.__call__

  def record(self, *args):
    found = call(self, *args)
    states.append(_raw(found[0]))
    return found

  monkeypatch.setattr(groups.Groups, "__call__", record)
  _break(monkeypatch, (3,), _infinite_rewards)
  _run(tmp_path / "run")
  found = killed_runs.metrics(tmp_path / "run")
  assert [row["skipped"] for row in found] == [0, 0, 1, 0, 0, 0]
  assert [row["skipped_total"] for row in found] == [0, 0, 1, 1, 1, 1] and found[2]["loss"] is None  # JSON has no NaN
  assert found[:2] == whole[1][:2] and np.isfinite(found[3]["loss"])
  expected = states[1].replace(step=np.int32(3))  # nothing but the step
  jax.tree.map(np.testing.assert_array_equal, states[2], expected)
  moved = jax.tree.map(lambda a, b: np.any(a != b), states[3], states[2])
  assert all(jax.tree.leaves((moved.params["layers"]["gate"], moved.dual_params)))


def test_too_many_broken_updates_in_a_row_stop_the_run(tmp_path, monkeypatch):
  _break(monkeypatch, (1, 3, 4, 5), _infinite_rewards)
  with pytest.raises(InputError, match=r"step 5: the loss is not finite.* 3 times in a row.*learning_rate"):
    _run(tmp_path / "run", faults__max_skipped_in_row=2)
  assert len(killed_runs.metrics(tmp_path / "run")) == 5
  monkeypatch.undo()
  state, _ = _run(tmp_path / "run", faults__max_skipped_in_row=2)  # from step 4, which has two in a row
  assert killed_runs.metrics(tmp_path / "run")[-1]["skipped_total"] == 3 and int(state.step) == 6


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_one_value_that_is_not_finite_is_enough(bad):
  optimizer = optax.trace(0.9)
  params = jnp.ones(2)
  old = train_state.TrainState(jnp.zeros(()), params, optimizer.init(params), *(jnp.zeros(2),) * 4)
  fine, one = jnp.ones(2), jnp.ones(())
  for gradient, loss in ((fine, jnp.asarray(bad)), (fine.at[1].set(bad), one)):
    kept, told = train_state.move_policy(old, gradient, loss, optimizer)
    assert told["skipped"] == 1 and kept.step == 1
    jax.tree.map(np.testing.assert_array_equal, kept.replace(step=old.step), old)
    duals_moved = kept.replace(dual_params=kept.dual_params + 1)
    assert not train_state.keep_if_skipped(told["skipped"], duals_moved, kept).dual_params.any()
  moved, told = train_state.move_policy(old, fine, one, optimizer)
  assert told["skipped"] == 0 and (moved.params == 2).all() and (moved.opt_state.trace == 1).all()
  assert train_state.keep_if_skipped(
    told["skipped"], moved.replace(dual_params=moved.dual_params + 1), moved
  ).dual_params.all()


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_full_disk_is_one_error_and_leaves_the_last_checkpoint(tmp_path, monkeypatch, whole, asynchronous):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

  def fill(batch):
    while not (tmp_path / "run" / "checkpoints" / "2").exists():
      time.sleep(0.01)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    return batch

  try:
    with monkeypatch.context() as patch:
      _break(patch, (3,), fill)
      with pytest.raises(InputError, match="could not be written to .*; that of step 2 is intact: free space"):
        _run(tmp_path / "run", checkpoint__asynchronous=asynchronous)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  # A user starts another process; here the storage's threads of the failed save must be through first.
  folder, seen = tmp_path / "run" / "checkpoints", None
  while any(folder.rglob("*__lock")) or seen != (seen := sorted(folder.rglob("*"))):
    time.sleep(0.3)
  state, recorder = _run(tmp_path / "run", checkpoint__asynchronous=asynchronous)
  assert recorder.notes == ["resuming at step 3: step 2 was restored"]
  jax.tree.map(np.testing.assert_array_equal, _raw(state), whole[0])
  assert not [name for name in os.listdir(tmp_path / "run" / "checkpoints") if "tmp" in name]


def test_a_resumed_run_refuses_other_prompts_and_another_config(tmp_path):
  _run(tmp_path / "run")
  with pytest.raises(InputError, match="of another config .*duals.delay is 0 there and 1 here"):
    _run(tmp_path / "run", duals__delay=1)
  config = killed_runs.config(tmp_path, 6)
  lines = (tmp_path / "prompts.jsonl").read_text().splitlines(keepends=True)
  (tmp_path / "prompts.jsonl").write_text("".join(lines[::-1]))
  with pytest.raises(InputError, match="the prompts are not those of the checkpoint"):
    toy.train(config, tmp_path / "run", toy.policy(), offline_toy.Recorder())


def test_a_state_makes_room_before_the_saved_one_is_read(tmp_path, monkeypatch):
  _run(tmp_path / "run")
  create, restore, found = plans.initial, checkpoint.Checkpoints.restore, []
  fresh = lambda *args: found.append(create(*args)) or found[-1]
  monkeypatch.setattr(plans, "initial", fresh)

  def read(self, state):
    before, _ = found[-1]
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((before.params, before.opt_state)))
    return restore(self, state)

  monkeypatch.setattr(checkpoint.Checkpoints, "restore", read)
  state, recorder = _run(tmp_path / "run")
  assert recorder.notes == ["all 6 steps were done before: step 6 was restored"] and len(found) == 1
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.opt_state)))


def _write(path, keep, steps):
  log = metrics_log.MetricsLog(path, keep=keep)
  for step in steps:
    log.write({"step": step, "loss": 0.5})
  log.close()
  return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_rows_that_no_checkpoint_vouches_for_are_dropped(tmp_path):
  path = tmp_path / "metrics.jsonl"
  assert _write(path, 0, (1, 2, 3)) == [1, 2, 3]
  with open(path, "a", encoding="utf-8") as file:
    file.write('{"step": 4, "los')  # killed while writing
  assert _write(path, 3, (4,)) == [1, 2, 3, 4]
  assert _write(path, 2, (3,)) == [1, 2, 3]
  assert _write(path, 0, (1,)) == [1]  # its checkpoints are gone


def _damaged(path, tail, *, middle=b""):
  rows = [metrics_file.line({"step": step, "loss": 0.5}).encode() for step in (1, 2, 3)]
  path.write_bytes(rows[0] + middle + rows[1] + rows[2] + tail)


@pytest.mark.parametrize(
  "tail", [b'{"step": 4, "los', b"\0" * 4096, b'{"step": 4, "text": "\xe2\x82', b"\n\n", b'{"step"', b"12", b""]
)
def test_a_cut_end_of_the_metrics_is_dropped_by_every_reader(tmp_path, tail):
  path, notes = tmp_path / "metrics.jsonl", []
  _damaged(path, tail)
  assert [row["step"] for row in metrics_file.read(path, notes.append)] == [1, 2, 3] and notes == []
  config = toy.config(tmp_path)
  assert [row["step"] for row in evaluate.training_metrics(config, tmp_path)[config.method]] == [1, 2, 3]
  assert _write(path, 3, (4,)) == [1, 2, 3, 4]


@pytest.mark.parametrize(
  "middle", [b"\0\0\n", b"\xff\xfe\n", b'{"step": 2\n', b"[1]\n", b'{"loss": 1}\n', b"[" * 9999 + b"\n"]
)
def test_other_damage_of_the_metrics_is_named_in_one_line(tmp_path, middle, capsys):
  path, notes = tmp_path / "metrics.jsonl", []
  _damaged(path, b"", middle=middle)
  assert [row["step"] for row in metrics_file.read(path, notes.append)] == [1, 2, 3]
  assert len(notes) == 1 and f"{path}: line 2 is damaged" in notes[0]
  config = toy.config(tmp_path)
  evaluate.training_metrics(config, tmp_path)
  assert "line 2 is damaged" in capsys.readouterr().out
  assert _write(path, 3, ()) == [1, 2, 3]


def test_metrics_are_json_whatever_their_values(tmp_path):
  path = tmp_path / "metrics.jsonl"
  log = metrics_log.MetricsLog(path, keep=0)
  log.write({"step": 1, "loss": np.nan, "a": np.inf, "b": -np.inf, "c": 1.5, "floor": None})
  log.close()

  def refuse(word):
    raise AssertionError(word)

  expected = {"step": 1, "loss": None, "a": None, "b": None, "c": 1.5, "floor": None}
  assert json.loads(path.read_text(), parse_constant=refuse) == expected
  path.write_text('{"step": 1, "loss": NaN}\n')  # of an older version
  assert metrics_file.read(path) == [{"step": 1, "loss": None}] == _read_twice(path)


def _events(folder):
  """Events of all files of TensorBoard's, by the layout of its records: length, checksum, event, checksum."""
  for path in sorted(folder.iterdir()):
    data, place = path.read_bytes(), 0
    while place < len(data):
      (size,) = struct.unpack_from("<Q", data, place)
      yield Event.FromString(data[place + 12 : place + 12 + size])
      place += size + 16


def test_events_hold_the_metrics_and_hide_those_of_steps_that_are_done_again(tmp_path):
  _write(tmp_path / "metrics.jsonl", 0, (1, 2))
  first = {event.step: event for event in _events(tmp_path / "tensorboard") if event.step}
  values = {step: {value.tag: value.simple_value for value in event.summary.value} for step, event in first.items()}
  assert values == {1: {"step": 1.0, "loss": 0.5}, 2: {"step": 2.0, "loss": 0.5}}
  for path in (tmp_path / "tensorboard").iterdir():
    path.unlink()
  _write(tmp_path / "metrics.jsonl", 1, (2,))
  later = [(event.step, event.session_log.status == SessionLog.START) for event in _events(tmp_path / "tensorboard")]
  assert later == [(0, False), (2, False), (2, True), (2, False)]


def _read_twice(path):
  metrics_log.MetricsLog(path, keep=1).close()
  return metrics_file.read(path)


def _saver(folder, notes, **changes):
  config = toy.config(folder)
  config.checkpoint.every, config.checkpoint.asynchronous = 0, False
  config.checkpoint.update(changes)
  own = {"config": json.loads(config.to_json_best_effort()), "steps": 2, "constraints": {}}
  return saving.Saver(build.saving(config), folder, notes.append, same={}, tokenizer=None, order=None, **own)


def _rows(folder, count):
  (folder / "metrics.jsonl").write_text("".join(metrics_file.line({"step": step}) for step in range(1, count + 1)))


def _state():
  ones = {"a": jnp.ones(3)}
  return train_state.create(
    ones, {"quality": jnp.ones(())}, jax.random.key(0), optimizer=optax.sgd(0.1), dual_optimizer=optax.sgd(0.1)
  )


def test_the_first_line_says_where_a_run_starts(tmp_path):
  notes = []
  _saver(tmp_path, notes).restore(_state())
  _rows(tmp_path, 3)
  _saver(tmp_path, notes).restore(_state())
  assert notes == ["starting at step 1", "starting at step 1: no checkpoint here, 3 old rows of metrics.jsonl replaced"]


def test_a_run_neither_starts_anew_nor_loses_metrics_beside_checkpoints_that_it_cannot_use(tmp_path):
  saver, log = _saver(tmp_path, []), metrics_log.MetricsLog(tmp_path / "metrics.jsonl", keep=0)
  _rows(tmp_path, 2)
  assert saver.due(2)
  saver.save(_state().replace(step=jnp.asarray(2, jnp.int32)), 2, log)
  with saver:
    pass
  before = (tmp_path / "metrics.jsonl").read_bytes()

  def restore(message, **changes):
    with pytest.raises(InputError, match=message):
      _saver(tmp_path, [], **changes).restore(_state())
    assert (tmp_path / "metrics.jsonl").read_bytes() == before

  restore("holds a run, and checkpoint.every=-1 reads none: set it to 0", every=-1)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(checkpoint.ocp.CheckpointManager, "restore", _raise(OSError(5, "Input/output error")))
    restore("Input/output error")
  path = tmp_path / "checkpoints" / "2" / "host" / "metadata"
  path.write_text(path.read_text().replace('"skipped"', '"jumped"'))
  restore("none of the checkpoints .* is whole")
  restore("holds damaged-2 and no whole checkpoint")


def _raise(error):
  def call(*args, **kwargs):
    raise error

  return call


def test_a_checkpoint_of_another_program_is_one_line(tmp_path):
  saver = _saver(tmp_path, [])
  saver._checkpoints.save(_state(), {"mine": 1})
  with saver:
    pass
  with pytest.raises(InputError, match="lacks config, loop, same, skipped, so no run of this program wrote it"):
    _saver(tmp_path, []).restore(_state())


def test_metrics_that_cannot_be_written_are_one_error(tmp_path):
  log = metrics_log.MetricsLog(tmp_path / "metrics.jsonl", keep=0)
  (tmp_path / "metrics.jsonl").mkdir()
  with pytest.raises(InputError, match="metrics.jsonl cannot be written .*the last checkpoint stands"):
    log.write({"step": 1})
  log.close()


@pytest.mark.parametrize(
  ("reward", "kl", "expected"),
  [(0.55, 0.2, 0.0), (0.5, 0.2, 0.0), (0.25, 0.2, 0.5), (0.25, 0.6, 2.0), (0.6, 0.3, 0.5), (np.nan, 0.1, None)],
)
def test_quality_compares_measured_values_with_the_constraints(tmp_path, reward, kl, expected):
  config = toy.config(tmp_path)
  config.constraints.quality.bound, config.constraints.kl.bound, config.constraints.quality.margin = 0.5, 0.2, 0.3
  values = {"quality": reward, "kl": kl, "entropy": 3.0}
  averages = train_state.Averages(values, jnp.ones(()))
  state = train_state.TrainState(*(None,) * 5, averages, None)
  constraints = build_constraints.constraints(config, aim=False)
  found = saving.quality(constraints, state)
  assert found == expected or found == pytest.approx({"entropy": 3.0, "shortfall": expected}, abs=1e-6)
  assert saving.quality(constraints, state.replace(averages=train_state.Averages.create(values))) is None


def test_quality_counts_the_floors_of_further_rewards(tmp_path):
  config = toy.config(tmp_path)
  config.reward.functions = (("short", "length", 1.0, "none", 0.8), ("other", "length", 1.0, "none", None))
  values = {"quality": 1.0, "kl": 0.0, "entropy": 3.0, "short": 0.6}
  state = train_state.TrainState(*(None,) * 5, train_state.Averages(values, jnp.ones(())), None)
  assert saving.quality(build_constraints.constraints(config, aim=False), state)["shortfall"] == pytest.approx(0.25)
