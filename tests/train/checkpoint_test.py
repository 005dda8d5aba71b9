"""Checkpoints: what comes back is what was saved, on any topology; damage is passed over; the best outlives its age."""

import json
import pathlib
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from qempo_jax import duals
from qempo_jax import sharding
from qempo_jax.errors import InputError
from qempo_jax.train import checkpoint
from qempo_jax.train import checksums
from qempo_jax.train import state as train_state

ADAM = optax.adam(0.1)


def _state(step=0, mesh=None, width=16):
  params = {
    "layers": {"gate": jax.random.normal(jax.random.key(step), (2, 8, width))},
    "norm": jnp.ones(3, jnp.bfloat16),
  }
  dual_params = duals.init_dual_params({"quality": 2.0}, parametrisation={"quality": "log"})
  state = train_state.create(params, dual_params, jax.random.key(step + 1), optimizer=ADAM, dual_optimizer=ADAM)
  state = state.replace(step=jnp.asarray(step, jnp.int32))
  return state if mesh is None else jax.device_put(state, sharding.tree_shardings(state, mesh))


def _mesh(count):
  return sharding.make_mesh((1, count, 1), devices=jax.devices()[:count])


def _open(folder, keep=3, **options):
  notes = []
  return checkpoint.Checkpoints(folder, keep=keep, note=notes.append, **options), notes


def _saved(folder, steps=(1, 2), mesh=None):
  checkpoints, _ = _open(folder)
  for step in steps:
    checkpoints.save(_state(step, mesh), {"position": 10 * step})
  checkpoints.close()


def _same(found, expected):
  raw = lambda state: jax.device_get(state.replace(rng=jax.random.key_data(state.rng)))
  jax.tree.map(np.testing.assert_array_equal, raw(found), raw(expected))


def _largest_file(folder: pathlib.Path) -> pathlib.Path:
  """Of the arrays' values."""
  return max((path for path in folder.rglob("d/*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_a_state_of_eight_devices_comes_back_on_four_and_on_one(tmp_path):
  _saved(tmp_path, (1,), _mesh(8))
  for count in (4, 1):
    checkpoints, _ = _open(tmp_path)
    state, host = checkpoints.restore(_state(7, _mesh(count)))
    checkpoints.close()
    assert host == {"position": 10} and len(state.params["layers"]["gate"].sharding.device_set) == count
    _same(state, _state(1))


def test_nothing_there_is_nothing_restored(tmp_path):
  checkpoints, _ = _open(tmp_path)
  assert checkpoints.restore(_state()) is None and checkpoints.restore_params(_state().params) is None
  assert checkpoints.best_step() is None


def _truncate(folder):
  path = _largest_file(folder)
  path.write_bytes(path.read_bytes()[:-100])


def _flip(folder):
  path = _largest_file(folder)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 0xFF
  path.write_bytes(data)


def _forget_the_host(folder):
  for path in (folder / "host").iterdir():
    path.unlink()


def _garbage(name):
  return lambda folder: (folder / name).write_bytes(b"\x00{garbage\xff")


def _missing(name):
  return lambda folder: (folder / name).unlink()


def _edited(edit):
  """An edit of the host's record, which stays JSON."""

  def damage(folder):
    path = folder / "host" / "metadata"
    found = json.loads(path.read_text())
    edit(found)
    path.write_text(json.dumps(found))

  return damage


DAMAGE = {
  "cut file of arrays": _truncate,
  "flipped byte": _flip,
  "missing file of arrays": lambda folder: _largest_file(folder).unlink(),
  "unparsable manifest": _garbage("params/manifest.ocdbt"),
  "missing manifest": _missing("rest/manifest.ocdbt"),
  "missing record": _forget_the_host,
  "unparsable record": _garbage("host/metadata"),
  "changed bits in the record": _edited(lambda found: found["about"]["bits"].update(rest=0)),
  "renamed key": _edited(lambda found: found["host"].update(place=found["host"].pop("position"))),
  "changed digit": _edited(lambda found: found["host"].update(position=31)),
  "changed measurement": _edited(lambda found: found["about"].update(quality={"entropy": 99.0, "shortfall": 0.0})),
  "record without host": _edited(lambda found: found.pop("host")),
  "record without checksum": _edited(lambda found: found.pop("sum")),
  "record that is a list": lambda folder: (folder / "host" / "metadata").write_text("[1]"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_newest_checkpoint_is_passed_over_and_said(tmp_path, name):
  _saved(tmp_path, (2, 3))
  DAMAGE[name](tmp_path / "3")
  checkpoints, notes = _open(tmp_path)
  state, host = checkpoints.restore(_state())
  assert host == {"position": 20} and len(notes) == 1 and "/3" in notes[0] and "going back" in notes[0]
  _same(state, _state(2))
  assert (tmp_path / "damaged-3").is_dir() and checkpoints.steps() == [2]
  if name == "cut file of arrays":
    checkpoints.save(_state(3), {"position": 30})  # its place is free again
    checkpoints.wait()
    assert _open(tmp_path)[0].restore(_state())[1] == {"position": 30}
  checkpoints.close()


FAULTS = {
  "read error": OSError(5, "Input/output error"),
  "too many open files": OSError(24, "Too many open files"),
  "permission": PermissionError(13, "Permission denied"),
  "host memory": MemoryError("cannot allocate 8 GiB"),
  "device memory": jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes\nand more"),
  "storage": ValueError("UNAVAILABLE: connection reset"),
  "time": TimeoutError("timed out"),
}


def _names(folder):
  return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
  ("where", "name"),
  [("arrays", name) for name in FAULTS]
  + [("record", name) for name in ("read error", "too many open files", "permission")],
)
def test_a_passing_fault_is_raised_with_its_own_message_and_moves_nothing(saved, monkeypatch, name, where):
  def fail(*args, **kwargs):
    raise FAULTS[name]

  checkpoints, notes = _open(saved)
  before = _names(saved)
  with monkeypatch.context() as patch:
    if where == "arrays":
      patch.setattr(checkpoints._manager, "restore", fail)
    else:
      patch.setattr(type(checkpoints._path(1)), "read_bytes", fail)
    for read in (checkpoints.restore, lambda state: checkpoints.restore_params(state.params, step=2)):
      with pytest.raises(InputError) as caught:
        read(_state())
      assert str(FAULTS[name]).splitlines()[0] in str(caught.value) and "\n" not in str(caught.value)
      assert "start the same command again" in str(caught.value)
    if where == "record":  # and not the best of others, nor deleted for it
      with pytest.raises(InputError, match="could not be read"):
        checkpoints.best_step()
      steps = [types.SimpleNamespace(step=step) for step in (1, 2)]
      assert _open(saved, keep=1)[0].should_preserve(steps, context=None) == [True, True]
  assert _names(saved) == before and notes == []
  assert checkpoints.restore(_state())[1] == {"position": 20}  # by the same command, the fault being gone


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """Two whole checkpoints."""
  folder = tmp_path_factory.mktemp("checkpoints")
  _saved(folder)
  return folder


def test_only_the_damaged_one_of_several_is_moved(tmp_path, monkeypatch):
  _saved(tmp_path, (1, 2))
  _truncate(tmp_path / "2")
  checkpoints, notes = _open(tmp_path)
  restore = checkpoints._manager.restore

  def fail(step, **kwargs):
    if step == 1:
      raise OSError(5, "Input/output error")
    return restore(step, **kwargs)

  monkeypatch.setattr(checkpoints._manager, "restore", fail)
  with pytest.raises(InputError, match="1 could not be read .*Input/output error"):
    checkpoints.restore(_state())
  assert _names(tmp_path) == ["1", "damaged-2"] and len(notes) == 1


def test_no_run_starts_anew_beside_damaged_checkpoints(tmp_path):
  _saved(tmp_path, (1,))
  _truncate(tmp_path / "1")
  for message in ("none of the checkpoints in .* is whole", "holds damaged-1 and no whole checkpoint: .*remove"):
    checkpoints, _ = _open(tmp_path)
    with pytest.raises(InputError, match=message):
      checkpoints.restore(_state())
  shutil.rmtree(tmp_path / "damaged-1")  # told to
  assert _open(tmp_path)[0].restore(_state()) is None


def test_every_file_of_a_checkpoint_has_a_checksum(saved):
  for item in ("params", "rest"):
    files = json.loads((saved / "2" / item / checksums.SUMS).read_text())["files"]
    there = {str(path.relative_to(saved / "2" / item)) for path in (saved / "2" / item).rglob("*") if path.is_file()}
    assert there - set(files) <= {checksums.SUMS, "commit_success.txt"} and len(files) >= 5
  assert "sum" in json.loads((saved / "2" / "host" / "metadata").read_text())


def test_a_named_checkpoint_is_that_one_or_an_error(tmp_path):
  _saved(tmp_path, (1, 2, 3))
  _flip(tmp_path / "2")
  checkpoints, _ = _open(tmp_path, read_only=True)
  assert checkpoints.restore_params(_state().params, step=1)[1] == 1
  with pytest.raises(InputError, match="no checkpoint of step 7 in .*: choose one of 1, 2, 3"):
    checkpoints.restore_params(_state().params, step=7)
  with pytest.raises(InputError, match="/2 is damaged .*: choose one of 1, 3"):
    checkpoints.restore_params(_state().params, step=2)


def test_another_model_is_named_and_its_checkpoint_kept(tmp_path):
  _saved(tmp_path)
  checkpoints, notes = _open(tmp_path)
  with pytest.raises(InputError, match=r"another model or optimizer: params.*gate.* is float32\[2, 8, 16\] there"):
    checkpoints.restore(_state(width=32))
  assert not notes and checkpoints.steps() == [1, 2]


def test_an_old_format_is_refused_by_name(tmp_path):
  import orbax.checkpoint as ocp

  manager = ocp.CheckpointManager(tmp_path, options=ocp.CheckpointManagerOptions())
  items = ocp.args.Composite(state=ocp.args.StandardSave({"a": jnp.ones(2)}), host=ocp.args.JsonSave({"replay": []}))
  manager.save(4, args=items)
  manager.close()
  with pytest.raises(InputError, match="format 1, and this version reads format 3 alone"):
    _open(tmp_path)[0].restore(_state())


def test_parameters_alone_come_back_onto_other_devices(tmp_path):
  _saved(tmp_path, mesh=_mesh(8))
  checkpoints, _ = _open(tmp_path, read_only=True)
  abstract = jax.eval_shape(lambda: _state().params)
  shardings = sharding.tree_shardings(abstract, _mesh(2))
  place = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
  params, step = checkpoints.restore_params(jax.tree.map(place, abstract, shardings))
  assert step == 2 and len(params["layers"]["gate"].sharding.device_set) == 2
  jax.tree.map(np.testing.assert_array_equal, params, _state(2).params)


def test_read_only_passes_over_damage_without_moving_it(tmp_path):
  _saved(tmp_path)
  _truncate(tmp_path / "2" / "params")
  checkpoints, notes = _open(tmp_path, read_only=True)
  assert checkpoints.restore_params(_state().params)[1] == 1 and len(notes) == 1
  assert (tmp_path / "2").is_dir() and not list(tmp_path.glob("damaged*"))


def test_the_newest_and_the_best_feasible_are_kept(tmp_path):
  checkpoints, _ = _open(tmp_path, keep=2)
  found = []
  for step, (entropy, shortfall) in enumerate(
    [(9.0, 0.4), (9.0, 0.1), (3.0, 0.0), (5.0, 0.0), (4.0, 0.0), (8.0, 0.2)], 1
  ):
    checkpoints.save(_state(step), {}, {"entropy": entropy, "shortfall": shortfall})
    checkpoints.wait()
    found.append((checkpoints.steps(), checkpoints.best_step()))
  assert found == [([1], 1), ([1, 2], 2), ([2, 3], 3), ([3, 4], 4), ([4, 5], 4), ([4, 5, 6], 4)]
  params, step = checkpoints.restore_params(_state().params, best=True)
  assert step == 4
  jax.tree.map(np.testing.assert_array_equal, params, _state(4).params)
  checkpoints.save(_state(7), {})  # unmeasured: kept as one of the newest, never the best
  checkpoints.wait()
  assert checkpoints.steps() == [4, 6, 7]
  checkpoints.close()
  assert _open(tmp_path)[0].best_step() == 4


def test_bits_do_not_depend_on_the_sharding_but_on_every_leaf():
  bits = lambda state: checksums.bits(state.params)
  assert bits(_state(1)) == bits(_state(1, _mesh(8))) != bits(_state(2))
  state = _state(1)
  state.params["norm"] = state.params["norm"].at[1].set(1.0078125)  # the next bfloat16
  assert bits(state) != bits(_state(1))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "bool", "uint32", "int32"])
def test_bits_are_the_same_on_host_and_device(dtype):
  array = (100 * jax.random.normal(jax.random.key(0), (3, 5, 7))).astype(dtype)
  found = int(checksums._device_bits(array))
  assert int(checksums._host_bits(array)) == found
  assert checksums.bits({"a": jnp.zeros(2), "b": array}) == 3 * found % 2**32
