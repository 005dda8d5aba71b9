"""The side-by-side benchmark's pure parts, its protocol, and a rehearsal with a tiny model."""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import shared_rows
from experiments.benchmarks import time_by_scope
from experiments.benchmarks.bench import arithmetic
from experiments.benchmarks.bench import batches
from experiments.benchmarks.bench import cases
from experiments.benchmarks.bench import report
from experiments.benchmarks.bench import run
from experiments.benchmarks.bench import workers
from qempo_jax.errors import InputError
from qempo_jax.linear import linear
from tests.loops import offline_toy
from tests.loops import toy

SMOLLM2 = {
  "hidden_size": 576,
  "intermediate_size": 1536,
  "head_dim": 64,
  "num_attention_heads": 9,
  "num_key_value_heads": 3,
  "num_hidden_layers": 30,
  "vocab_size": 49152,
}
ECHO = """
import sys, types
from experiments.benchmarks.bench import serving
print("libraries print here")
calls = []
def step():
  print("and here")
  calls.append(1)
  if len(calls) == spec["last"]:
    raise ValueError("enough of it")
  return {"check": [1.0, len(calls)], "tokens": 5}
spec = serving.spec()
serving.serve(lambda spec: step)
"""


def test_ratio_is_of_medians_and_its_range_of_neighbours():
  assert arithmetic.ratio([1.0, 2.0, 3.0], [4.0, 4.0, 9.0]) == (2.0, 2.0, 4.0)


def test_line_finds_slope_and_share_of_variance():
  exact = arithmetic.line([1, 2, 3], [5.0, 7.0, 9.0])
  assert exact == pytest.approx((2.0, 3.0, 1.0))
  bent = arithmetic.line([0, 1, 2], [0.0, 0.0, 3.0])  # residuals 0.5, -1, 0.5 of values with variance sum 6
  assert bent == pytest.approx((1.5, -0.5, 0.75))
  assert arithmetic.line([1, 2], [3.0, 3.0]).r_squared == 1.0


def test_close_is_relative_and_elementwise():
  assert arithmetic.close(100.0, 100.05, 1e-3) and not arithmetic.close(100.0, 100.2, 1e-3)
  assert not arithmetic.close([1.0, 2.0], [1.0, 2.1], 1e-3)


def test_weights_are_smollm2s():
  blocks, head = arithmetic.weights(SMOLLM2)
  assert blocks + head + 576 * 61 == 134_515_008  # the norms' scales are the rest of its parameters


def test_time_is_shared_by_those_at_work():
  spans = [(0.0, 4e9, "a"), (2e9, 6e9, "b"), (8e9, 9e9, "a")]
  assert time_by_scope.shares(spans) == {"a": 4.0, "b": 3.0, "unrecorded": 2.0}


def test_scopes_come_from_the_programs_text():
  text = """
    %dot.1 = f32[2] dot(%a, %b), metadata={op_name="jit(f)/jvp(attention)/jit(linear)/dot_general"}
    ROOT %fusion.2 = f32[2] fusion(%a), metadata={op_name="jit(f)/transpose(jvp(norm))/mul"}
    dot.3 = f32[2] dot(a), metadata={op_name="jit(f)/transpose(jvp())/checkpoint/rematted_computation/linear/dot_general"}
    %copy.4 = f32[2] copy(%a)
    %while.5 = (f32[2]) while(%a), metadata={op_name="jit(f)/linear/while"}
  """
  expected = {
    "dot.1": "attention, forward",
    "fusion.2": "norm, backward",
    "dot.3": "linear, again",
    "copy.4": "others, forward",
  }
  assert time_by_scope.scopes_of(text) == expected


def test_time_of_a_program_goes_to_its_scopes():
  x, w = jnp.ones((256, 512)), jnp.ones((512, 512))
  step = jax.jit(lambda x, w: jax.grad(lambda w: jnp.sum(linear(jnp.sin(x), w) ** 2))(w), donate_argnums=1)
  seconds, wall = time_by_scope.by_scope(step, x, w)
  assert {"linear, forward", "linear, backward", "others, forward"} <= set(seconds)
  assert 0 < sum(seconds.values()) < wall


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_rows_are_shared_and_not_in_turn(tmp_path, monkeypatch, capsys, whole):
  """Of the whole program, or of all but the step that it times and the reference's scores."""
  policy = toy.policy()
  monkeypatch.setattr(shared_rows.build_policy, "policy", lambda config: policy)
  if not whole:
    monkeypatch.setattr(shared_rows.pairs, "compile_step", lambda *_: lambda state, batch, frozen: (state, None))
    monkeypatch.setattr(shared_rows.pairs.Pairs, "_score", lambda self, policy, visited: np.zeros((len(visited), 2)))
  config = offline_toy.config(tmp_path, count=40, scale=4.0)
  config.steps, config.compute.bucket, config.offline.pairs_per_row = 2, 8, 4
  shared_rows.main(config, tmp_path, False)
  saved = json.loads((tmp_path / "shared_rows.json").read_text())
  assert list(saved["seconds"]) == ["1", "4"] and all(len(times) == 2 for times in saved["seconds"].values())
  assert max(saved["padding"]["4"]) < min(saved["padding"]["1"])
  assert capsys.readouterr().out.count("per step, padding") == 2
  config.offline.pairs_per_row = 1
  with pytest.raises(InputError, match="set config.offline.pairs_per_row"):
    shared_rows.main(config, tmp_path, False)


def test_operations_count_a_shared_prompt_once():
  shape = {"pairs": 4, "prompt": 128, "response": 128}
  blocks, head = arithmetic.weights(SMOLLM2)
  found = arithmetic.operations("offline", shape, SMOLLM2)
  fed, scored = 4 * (128 + 2 * 127), 4 * 2 * 128
  assert found == {"forward": 2 * (blocks * fed + head * scored), "trained": 6 * (blocks * fed + head * scored)}
  sampled = {"prompts": 2, "group": 3, "prompt": 10, "response": 5}
  found = arithmetic.operations("decode", sampled, SMOLLM2)
  assert found == {"forward": 2 * (blocks * (30 + 20) + head * 30), "trained": 0}


def test_batches_are_cut_from_one_text(tmp_path):
  np.save(tmp_path / "tokens.npy", np.arange(50, dtype=np.int32))
  prompts, responses = batches.pairs(str(tmp_path), {"pairs": 2, "prompt": 4, "response": 3})
  assert prompts.tolist() == [[0, 1, 2, 3], [10, 11, 12, 13]] and responses[1].tolist() == [[14, 15, 16], [17, 18, 19]]
  given = batches.given_groups(str(tmp_path), {"prompts": 2, "group": 3, "prompt": 4, "response": 10})
  assert given.shape == (2, 3, 10) and given[1, 2, -1] == (7 + 59) % 67 % 50
  assert batches.distinct_share([1, 1, 2, 3]) == 0.75


def _worker(tmp_path, monkeypatch, last):
  folder = tmp_path / "experiments_echo"
  folder.mkdir(exist_ok=True)
  (folder / "echo.py").write_text(ECHO, encoding="utf-8")
  monkeypatch.setattr(workers, "MODULES", "experiments_echo")
  return workers.Worker(
    "echo", sys.executable, "echo", {"last": last}, tmp_path / "log", {"PYTHONPATH": f"{workers.ROOT}:{tmp_path}"}
  )


def test_workers_step_in_turn_and_only_figures_reach_us(tmp_path, monkeypatch):
  worker = _worker(tmp_path, monkeypatch, last=0)
  found = workers.alternate([worker], warm_ups=1, rounds=2)["echo"]
  worker.close()
  assert [step["check"] for step in (*found["warm_up"], *found["steps"])] == [[1.0, 1], [1.0, 2], [1.0, 3]]
  assert all(0 <= step["seconds"] < 5 and step["peak_bytes"] > 10**6 for step in found["steps"])
  assert "and here" in (tmp_path / "log").read_text()


def test_a_worker_that_fails_says_why(tmp_path, monkeypatch):
  worker = _worker(tmp_path, monkeypatch, last=1)
  with pytest.raises(InputError, match="echo of the benchmark stopped.*enough of it"):
    worker.step()


def test_sides_that_differ_stop_the_benchmark():
  side = lambda *checks: {"warm_up": [{"check": checks[0]}], "steps": [{"check": checks[1]}]}
  run.same("offline", side(0.5, 0.4), side(0.5001, 0.4), 1e-3)
  with pytest.raises(InputError, match="do not compute the same at step 1"):
    run.same("offline", side(0.5, 0.4), side(0.5, 0.41), 1e-3)


def _entry():
  steps = lambda seconds, peak: {
    "ready": {"seconds": 1.0, "resident_bytes": 10**8},
    "warm_up": [{"check": 0.6, "peak_bytes": peak}],
    "steps": [{"seconds": s, "peak_bytes": peak, "check": 0.5} for s in seconds],
  }
  sides = {"ours": steps((2.0, 2.0), 10**9), "TRL": steps((6.0, 7.0), 4 * 10**9)}
  match = {"ours": "ours", "other": "TRL", "sides": sides, "goal": 2.5, "memory_goal": 0.5}
  header = {"title": "a step", "tiny": False, "command": "python -m it", "date": "today", "machine": "a machine"}
  header |= {"versions": {"jax": "1"}, "load_before": 0.0, "load_after": 1.0}
  shape = {"pairs": 4, "prompt": 128, "response": 128}
  operations = arithmetic.operations("offline", shape, SMOLLM2)
  rates = {"forward": operations["forward"] / 0.5, "trained": operations["trained"] / 0.5}
  entry = {
    "kind": "offline",
    "shape": shape,
    "matches": [match],
    "floor": {"float32": rates},
    "model": SMOLLM2,
    "floor_goal": None,
  }
  return header | entry


def test_page_has_ratio_memory_and_share_of_the_floor():
  page = report.page({"offline": _entry()})
  assert "| ours | TRL | 2.00 (2.00-2.00) | 6.50 (6.00-7.00) | 3.25 (3.00-3.50) | >= 2.50 |" in page
  assert "1.00 / 4.00 GB, 25% (goal 50%) | 50% | 6.50 |" in page and "checked values 0.6 and 0.6" in page


def test_results_are_kept_case_by_case(tmp_path):
  path = tmp_path / "bench.json"
  run.keep(path, "a", {"x": 1})
  run.keep(path, "b", {"x": 2})
  run.keep(path, "a", {"x": 3})
  assert json.loads(path.read_text()) == {"a": {"x": 3}, "b": {"x": 2}}


def test_an_unknown_case_is_named(capsys):
  with pytest.raises(SystemExit) as stop:
    run.main(["--only=offlin"])
  assert "no case is called 'offlin'" in str(stop.value)


def test_every_case_has_a_rehearsal_and_sides_that_exist():
  folder = pathlib.Path(run.__file__).parent / "sides"
  assert set(cases.TINY) == {case.name for case in cases.ALL}
  for case in cases.ALL:
    assert set(case.shape) == set(cases.TINY[case.name])
    for match in case.matches:
      assert (folder / f"{match.ours.module}.py").exists() and (folder / f"{match.other.module}.py").exists()


@pytest.mark.slow
def test_rehearsal_of_everything_that_needs_no_peer(tmp_path, monkeypatch):
  monkeypatch.delenv("XLA_FLAGS", raising=False)  # the sides' processes have the machine's own devices
  files = [f"--{name}={tmp_path / name}" for name in ("results", "tables")]
  run.main(
    [
      "--tiny",
      "--rounds=1",
      "--without=trl,tunix",
      f"--workdir={tmp_path}",
      f"--figure={tmp_path / 'plot.png'}",
      *files,
    ]
  )
  found = json.loads((tmp_path / "results").read_text())
  alone = {case.name for case in cases.ALL for match in case.matches if match.other.environment == "ours"}
  assert set(found) == {*alone, "scaling"} >= {"token_stats", "prefix"} and (tmp_path / "plot.png").exists()
  assert [len(found[name]["matches"]) for name in ("token_stats", "prefix")] == [1, 1]
  assert "tokens | " in (tmp_path / "tables").read_text()
