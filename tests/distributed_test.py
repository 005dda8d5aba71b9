"""A run over two processes writes what one process writes; one that dies ends both, and one process goes on from there."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import pytest

from experiments import distributed
from qempo_jax.errors import InputError

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 4
DIES_AFTER = 2


def _start(workdir, processes, *, dies=False):
  """The processes of one run, four devices together; of those that die, the last does, after its checkpoint."""
  with socket.socket() as found:
    found.bind(("localhost", 0))
    address = f"localhost:{found.getsockname()[1]}"
  running = []
  for index in range(processes):
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={4 // processes}",
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(index),
    }
    env.pop("JAX_COMPILATION_CACHE_DIR", None)  # one process alone would find its programs there, and wait for the others
    command = [sys.executable, "-m", "tests.distributed_test", str(workdir), str(int(dies and index == processes - 1))]
    with open(workdir.parent / f"{workdir.name}_{processes}_{index}.log", "w", encoding="utf-8") as log:
      running.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT))
  return running


def _finish(workdir, running):
  for index, process in enumerate(running):
    code = process.wait(timeout=1200)
    log = (workdir.parent / f"{workdir.name}_{len(running)}_{index}.log").read_text(encoding="utf-8")
    assert code == 0, log[-3000:]


def _metrics(workdir):
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
  return [{name: value for name, value in row.items() if "second" not in name} for row in rows]


def _same(found, expected):
  assert [row["step"] for row in found] == [row["step"] for row in expected] == list(range(1, STEPS + 1))
  for row, other in zip(found, expected):
    assert row == pytest.approx(other, rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_two_processes_equal_one_and_one_goes_on_where_a_host_was_lost(tmp_path):
  _finish(tmp_path / "one", _start(tmp_path / "one", 1))
  expected = _metrics(tmp_path / "one")
  assert expected[0]["grad_norm"] > 0 and expected[0]["reward"] != expected[-1]["reward"]

  _finish(tmp_path / "two", _start(tmp_path / "two", 2))
  _same(_metrics(tmp_path / "two"), expected)  # one row a step: the first process alone writes
  assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 1

  first, second = _start(tmp_path / "cut", 2, dies=True)
  assert second.wait(timeout=1200) == -9
  lost = time.monotonic()
  assert first.wait(timeout=120) != 0
  assert time.monotonic() - lost < 60
  assert "step 4" not in (tmp_path / "cut_2_0.log").read_text(encoding="utf-8")
  _finish(tmp_path / "cut", _start(tmp_path / "cut", 1))
  assert "resumed after step 2" in (tmp_path / "cut_1_0.log").read_text(encoding="utf-8")
  _same(_metrics(tmp_path / "cut"), expected)


def test_half_a_description_of_the_others_is_refused(monkeypatch):
  monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
  monkeypatch.delenv("JAX_NUM_PROCESSES", raising=False)
  with pytest.raises(InputError, match="JAX_NUM_PROCESSES"):
    distributed.start()


def _worker(workdir: pathlib.Path, dies: bool) -> None:
  """The whole program of `experiments.train` on the toy, four devices as (2, 2, 1)."""
  distributed.start()
  import jax
  import numpy as np

  from experiments import builders
  from experiments import train
  from experiments.loops import saving
  from qempo_jax import sharding
  from qempo_jax.models import transformer
  from tests.loops import toy

  def policy(config):
    mesh = sharding.make_mesh(tuple(config.compute.mesh))
    params = jax.tree.map(np.asarray, transformer.init(jax.random.key(0), toy.MODEL, stddev=0.3))
    params = sharding.place(params, sharding.tree_shardings(params, mesh, sharding.PARAM_RULES))
    return builders.Policy(toy.MODEL, params, toy.ToyTokenizer(), (toy.EOS,), mesh)

  class DyingSaver(saving.Saver):
    """Kills this process once the checkpoint of `DIES_AFTER` is on disk."""

    def after_step(self, state, *rest):
      super().after_step(state, *rest)
      if int(state.step) == DIES_AFTER:
        self._checkpoints.wait()
        os.kill(os.getpid(), 9)

  builders.policy = policy
  if dies:
    saving.Saver = DyingSaver
  folder = workdir.parent / f"data_{jax.process_index()}"
  folder.mkdir(exist_ok=True)
  config = toy.config(folder)
  config.data.source = f"jsonl:{workdir.parent / 'data_0' / 'prompts.jsonl'}"
  config.steps, config.compute.mesh = STEPS, (2, 2, 1)
  config.objective.min_reward, config.objective.max_kl = 0.6, 0.1
  config.sampling.group_size, config.checkpoint.every = 4, DIES_AFTER
  config.optimizer.learning_rate = 1e-3
  train.main(config, workdir, False)


if __name__ == "__main__":
  _worker(pathlib.Path(sys.argv[1]), sys.argv[2] == "1")
