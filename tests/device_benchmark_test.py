"""The device benchmark: its scheduling, its page, what it imports, and a rehearsal of every part with small shapes."""

import ast
import importlib
import inspect
import json
import os
import pathlib
import subprocess
import sys

import pytest

from experiments.benchmarks.device import page
from experiments.benchmarks.device import parts as catalogue
from experiments.benchmarks.device import schedule
from experiments.benchmarks.device import worker
from experiments.benchmarks.device.schedule import Case
from experiments.benchmarks.device.schedule import Part

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "experiments" / "benchmarks" / "device"
# Stands in for the worker: "hang" and "crash" do so, "bad" reports a failure, others are done.
WORKER = """
import json, os, sys, time
for case in sys.argv[1:]:
  if case == "hang": time.sleep(60)
  if case == "crash": sys.exit("out of luck")
  print("noise")
  print(json.dumps({"status": "failed", "reason": "bad"} if case == "bad" else {"status": "done", "result": {"pid": os.getpid()}}), flush=True)
"""


def _run(*names, seconds=30.0, part_seconds=0.5, free=None, start_seconds=1.5):
  records = []
  cases = tuple(Case(name, {}, needs=100 if name == "large" else 0) for name in names)
  schedule.run(
    [Part("one", "kind", cases[:-1], part_seconds), Part("two", "kind", cases[-1:], part_seconds)],
    seconds=seconds,
    record=records.append,
    free_memory=lambda: free,
    command=lambda part, cases: [sys.executable, "-c", WORKER, *(case.name for case in cases)],
    start_seconds=start_seconds,
  )
  return {record["case"]: record for record in records}


def test_what_fails_says_why_and_the_rest_goes_on():
  found = _run("a", "bad", "b", "hang", "c", "crash", "d", "large", "e", free=50)
  assert {name: record["status"] for name, record in found.items() if record["status"] != "done"} == {
    "bad": "failed",
    "hang": "failed",
    "crash": "failed",
    "large": "skipped",
  }
  assert found["bad"]["reason"] == "bad" and "limit of 0.5 s" in found["hang"]["reason"]
  assert "exit code 1: out of luck" in found["crash"]["reason"] and "GiB are free" in found["large"]["reason"]
  pid = lambda name: found[name]["result"]["pid"]
  assert pid("a") == pid("b")  # One process a part; a new one after one that was ended.
  assert len({pid(name) for name in "acde"}) == 4


def test_nothing_starts_when_the_time_is_used_up():
  found = _run("a", "hang", "b", seconds=2.5, part_seconds=60.0)
  assert found["a"]["status"] == "done" and found["hang"]["reason"] == "the time of the whole run ended"
  assert found["b"]["status"] == "skipped" and "2.5 s was used up" in found["b"]["reason"]


def test_an_interruption_ends_the_process():
  pids = []

  def record(found):
    pids.append(found["result"]["pid"])
    raise KeyboardInterrupt

  command = lambda part, cases: [sys.executable, "-c", WORKER, "a", "hang"]
  part = Part("one", "kind", (Case("a", {}), Case("hang", {})), 30.0)
  with pytest.raises(KeyboardInterrupt):
    schedule.run([part], seconds=60.0, record=record, free_memory=lambda: None, command=command)
  with pytest.raises(ProcessLookupError):
    os.kill(pids[0], 0)


@pytest.mark.parametrize("tiny", [False, True])
def test_cases_fit_their_measurements(tiny):
  for part in catalogue.all_parts(tiny=tiny, planted=True):
    module = importlib.import_module(f"experiments.benchmarks.device.{worker.KINDS[part.kind]}")
    assert len({case.name for case in part.cases}) == len(part.cases)
    for case in part.cases:
      inspect.signature(module.measure).bind(**json.loads(json.dumps(case.settings)))


def test_more_samples_and_longer_training_need_more_memory():
  needs = {f"{part.name}: {case.name}": case.needs for part in catalogue.all_parts(tiny=False) for case in part.cases}
  assert needs["decode 8b: 128 samples, cache bfloat16"] < needs["decode 8b, more: 256 samples, cache bfloat16"]
  assert needs["decode 8b, more: 128 samples, cache int8"] < needs["decode 8b: 128 samples, cache bfloat16"]
  training = "training 1.5b, more: offline, 2048 tokens, remat "
  assert needs["training 1.5b: offline, 2048 tokens, remat full"] < needs[f"{training}dots_no_batch"]
  assert needs[f"{training}dots_no_batch"] < needs[f"{training}none"]


def _record(kind, case, result, **settings):
  return {"part": kind, "kind": kind, "case": case, "settings": settings, "status": "done", "result": result}


def test_the_page_says_what_met_a_goal_and_what_did_not_run():
  batch = {"rows": 16, "group": 8}
  records = [
    _record("ceilings", "device", {"kind": "NVIDIA H200", "platform": "gpu", "jax": "0", "python": "3"}),
    _record("ceilings", "product", {"flops": 700e12}),
    _record("training", "offline", {"seconds": 1.0, "tokens_per_second": 5.0, "flops": 0.3 * 989e12}, model="0.5b"),
    _record("training", "offline", {"seconds": 1.0, "tokens_per_second": 5.0, "flops": 0.3 * 989e12}, model="8b"),
    _record("decode", "x", {"tokens_per_second": 9.0, "bytes_per_second": 2.4e12}, model="8b", batch=batch),
    {"part": "grpo", "kind": "grpo", "case": "7b", "settings": {}, "status": "failed", "reason": "no luck | none"},
  ]
  found = {goal["name"]: goal for goal in page.goals(records)}
  assert found["MFU at 0.5B"]["best"] == pytest.approx(0.3) and found["MFU at 0.5B"]["met"]
  assert not found["MFU at 8B"]["met"] and found["MFU at 1.5B"]["best"] is None
  assert found["share of bandwidth, decode 8b of 128 samples or more"]["met"]  # half of 4.8 TB/s
  text = page.markdown(records, command="COMMAND", plots=())
  assert "| MFU at 8B | 40% | 30% | missed | training: offline |" in text
  assert "| grpo: 7b | failed | no luck / none |" in text


def test_it_needs_the_core_dependencies_alone():
  """Besides matplotlib: no config package, and of experiments only what needs none."""
  allowed = ("experiments.benchmarks.device", "experiments.compile.")
  for path in [
    *FOLDER.glob("*.py"),
    *(ROOT / "experiments" / "compile" / f"{n}.py" for n in ("roofline", "memory", "chips")),
  ]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
      names += [f"{node.module}.{alias.name}" for alias in node.names] if isinstance(node, ast.ImportFrom) else []
      for name in names:
        assert name.split(".")[0] not in ("ml_collections", "absl", "configs", "tests"), path
        assert not name.startswith("experiments") or name.startswith(allowed), path


@pytest.mark.slow
def test_every_part_runs_on_a_cpu(tmp_path):
  command = [
    "-m",
    "experiments.benchmarks.device",
    "--shapes=tiny",
    "--seconds=1500",
    f"--output={tmp_path}",
    "--planted",
  ]
  subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
  records = [json.loads(line) for line in (tmp_path / "device.jsonl").read_text().splitlines()]
  bad = {f"{r['part']}: {r['case']}" for r in records if r["status"] == "failed"}
  assert bad == {"planted: raise", "planted: hang", "planted: crash"}
  kernels = [r for r in records if r["status"] == "skipped" and r["kind"] != "planted"]
  assert all("NVIDIA GPU" in r["reason"] for r in kernels)
  assert {r["kind"] for r in records if r["status"] == "done"} == set(worker.KINDS)
  for record in (r for r in records if r["kind"] == "attention" and r["status"] == "done"):
    assert record["result"]["gradient_error"] < 1e-4  # XLA's path keeps float32 attention.
  exact = next(r for r in records if r["kind"] == "agreement" and r["settings"]["dtype"] == "float32")
  assert exact["result"]["largest"] < 1e-4
  assert (tmp_path / "device.md").exists() and (tmp_path / "mfu.png").exists()
