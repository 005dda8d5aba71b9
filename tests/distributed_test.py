"""One online step over two processes gives what one process gives; both see the same metrics."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile

import pytest

from experiments import distributed
from qempo_jax.errors import InputError

ROOT = pathlib.Path(__file__).parents[1]


def _run(processes, devices):
  """Metrics of one step, as every process printed them."""
  with socket.socket() as found:
    found.bind(("localhost", 0))
    address = f"localhost:{found.getsockname()[1]}"
  running = []
  for index in range(processes):
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(index),
    }
    command = [sys.executable, "-m", "tests.distributed_test"]
    running.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
  printed = [process.communicate(timeout=600) for process in running]
  for process, (_, errors) in zip(running, printed):
    assert process.returncode == 0, errors[-3000:]
  return [json.loads(out.splitlines()[-1]) for out, _ in printed]


@pytest.mark.slow
def test_two_processes_equal_one():
  (expected,), found = _run(1, 4), _run(2, 2)
  assert found[0] == found[1]
  assert found[0] == pytest.approx(expected, rel=1e-4, abs=1e-5)
  assert expected["grad_norm"] > 0


def test_half_a_description_of_the_others_is_refused(monkeypatch):
  monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
  monkeypatch.delenv("JAX_NUM_PROCESSES", raising=False)
  with pytest.raises(InputError, match="JAX_NUM_PROCESSES"):
    distributed.start()


def _worker():
  distributed.start()
  import jax
  import numpy as np

  from experiments import builders
  from experiments.loops import online
  from experiments.loops import runs
  from experiments.loops import sampling
  from qempo_jax import sharding
  from qempo_jax.models import transformer
  from tests.loops import toy

  model = toy.MODEL
  with tempfile.TemporaryDirectory() as folder:
    config = toy.config(pathlib.Path(folder))
  config.objective.min_reward, config.objective.max_kl = 0.9, 0.1
  config.sampling.group_size = 4
  mesh = sharding.make_mesh((2, 2, 1))
  params = jax.tree.map(np.asarray, transformer.init(jax.random.key(0), model, stddev=0.3))
  params = sharding.place(params, sharding.tree_shardings(params, mesh, sharding.PARAM_RULES))
  policy = builders.Policy(model, params, toy.ToyTokenizer(), (0,), mesh)
  sampler = sampling.GroupSampler(policy, config, [{"prompt": prompt} for prompt in toy.PROMPTS * 8])
  samples = sampler(params, sampler.rows, jax.random.key(1), 4)
  rewards = sampling.group_rewards(builders.reward(config), samples)
  batch = online.Replay(config).make_batch(samples, rewards, np.random.default_rng(0))
  optimizers, state, shardings = runs.initial(config, policy)
  batch = sharding.place(batch, runs.split(mesh, config.data.prompts_per_step))
  state, metrics = online.compile_step(config, policy, optimizers, shardings)(state, params, batch)
  metrics |= {f"after/{name}": value for name, value in state.averages.values().items()}
  print(json.dumps({name: float(value) for name, value in jax.device_get(metrics).items()}))


if __name__ == "__main__":
  _worker()
