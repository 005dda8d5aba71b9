"""A run over two processes writes what one process writes; one that dies ends both, and one process goes on from there."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from experiments import plan
from experiments.configured import policy as build_policy
from experiments.run import distributed
from qempo_jax.errors import InputError
from tests.metrics_file import timeless

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 4
DIES_AFTER = 2
STALE = {"unlike": "tests.distributed_test.unlike_reward", "reward_model": "reward_model:"}  # rewards of stale runs


def _start(workdir, processes, *, mode="plain"):
  """The processes of one run, four devices together; where it "dies" or gets a "notice", the last process does."""
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
    env.pop(
      "JAX_COMPILATION_CACHE_DIR", None
    )  # one process alone would find its programs there, and wait for the others
    own = mode if index == processes - 1 or mode in (*STALE, "patience") else "slow" if mode == "notice" else "plain"
    command = [sys.executable, "-m", "tests.distributed_test", str(workdir), own]
    with open(_log(workdir, processes, index), "w", encoding="utf-8") as log:
      running.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT))
  return running


def _log(workdir, processes, index) -> pathlib.Path:
  return workdir.parent / f"{workdir.name}_{processes}_{index}.log"


def _finish(workdir, running):
  for index, process in enumerate(running):
    code = process.wait(timeout=1200)
    log = _log(workdir, len(running), index).read_text(encoding="utf-8")
    assert code == 0, log[-3000:]


def _same(found, expected):
  assert [row["step"] for row in found] == [row["step"] for row in expected] == list(range(1, STEPS + 1))
  for row, other in zip(found, expected):
    known = lambda one: {name: value for name, value in one.items() if value is not None}  # a run may have no floor
    assert known(row) == pytest.approx(known(other), rel=1e-3, abs=1e-5)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
  """The metrics of one process with all four devices."""
  workdir = tmp_path_factory.mktemp("one") / "one"
  _finish(workdir, _start(workdir, 1))
  found = timeless(workdir / "metrics.jsonl")
  assert found[0]["grad_norm"] > 0 and found[0]["reward"] != found[-1]["reward"]
  return found


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path, expected):
  _finish(tmp_path / "two", _start(tmp_path / "two", 2))
  _same(timeless(tmp_path / "two" / "metrics.jsonl"), expected)  # one row a step: the first process alone writes
  assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 1


@pytest.mark.slow
def test_a_lost_host_ends_the_run_and_one_process_goes_on(tmp_path, expected):
  workdir = tmp_path / "cut"
  first, second = _start(workdir, 2, mode="dies")
  assert second.wait(timeout=1200) == -9
  lost = time.monotonic()
  assert first.wait(timeout=120) != 0
  assert time.monotonic() - lost < 60
  told = _log(workdir, 2, 0).read_text(encoding="utf-8")
  assert "another task died" in told and "stopped sending heartbeats):\n1\n" in told and "step 4" not in told
  _finish(workdir, _start(workdir, 1))
  assert f"step {DIES_AFTER} was restored" in _log(workdir, 1, 0).read_text(encoding="utf-8")
  _same(timeless(workdir / "metrics.jsonl"), expected)


@pytest.mark.slow
def test_a_notice_to_one_process_makes_all_save_the_same_step_and_exit_with_0(tmp_path, expected):
  workdir = tmp_path / "notice"
  _finish(workdir, _start(workdir, 2, mode="notice"))
  rows = timeless(workdir / "metrics.jsonl")
  assert 1 <= len(rows) < STEPS
  assert str(len(rows)) in [path.name for path in (workdir / "checkpoints").iterdir()]
  for index in range(2):
    assert f"step {len(rows)} is saved" in _log(workdir, 2, index).read_text(encoding="utf-8")
  _finish(workdir, _start(workdir, 1))
  assert f"step {len(rows)} was restored" in _log(workdir, 1, 0).read_text(encoding="utf-8")
  _same(timeless(workdir / "metrics.jsonl"), expected)


@pytest.mark.slow
def test_two_processes_end_at_the_same_step_where_the_held_out_reward_no_longer_rises(tmp_path):
  """The first process alone has a metrics file to tell it, also when the run is started again."""
  workdir = tmp_path / "two"
  for _ in range(2):
    _finish(workdir, _start(workdir, 2, mode="patience"))
    assert [row["step"] for row in timeless(workdir / "metrics.jsonl")] == [1, 2]
    assert "step 2 is the last" in _log(workdir, 2, 0).read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("mode", STALE)
def test_rewards_that_differ_between_processes_and_reward_models_make_no_difference(tmp_path, mode):
  """With `stale_steps=1` rewards are computed in a thread, beside the update, in which all processes take part."""
  if mode == "reward_model":
    _export_judge(tmp_path / "judge")
  for processes in (1, 2):
    _finish(tmp_path / f"of{processes}", _start(tmp_path / f"of{processes}", processes, mode=mode))
  one, two = (timeless(tmp_path / f"of{processes}" / "metrics.jsonl") for processes in (1, 2))
  _same(two, one)
  assert one[-1]["found"] > 0 and len({row["reward"] for row in one}) == STEPS


def unlike_reward(prompts, completions, **columns):
  """The toy's on the first process; on others a time-out that judges nothing."""
  import jax

  from tests.loops import toy

  return toy.reward(prompts, completions) if jax.process_index() == 0 else [None] * len(completions)


def _export_judge(folder: pathlib.Path) -> None:
  """A small random reward model that reads the toy's texts."""
  import tokenizers
  import transformers

  from qempo_jax.models import reward_checkpoint
  from tests.models.reward_head_test import GOLDEN

  words = {word: place for place, word in enumerate(["<pad>", "<unk>", "<eos>", *"012345"])}
  inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "<unk>"))
  inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<eos>"}
  tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **special)
  config, params, _ = reward_checkpoint.load(GOLDEN / "llama")
  reward_checkpoint.export(folder, params, config, pad_token_id=0, tokenizer=tokenizer)


def test_half_a_description_of_the_others_is_refused(monkeypatch):
  monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
  monkeypatch.delenv("JAX_NUM_PROCESSES", raising=False)
  with pytest.raises(InputError, match="JAX_NUM_PROCESSES"):
    distributed.start()


def _worker(workdir: pathlib.Path, mode: str) -> None:
  """The whole program of `experiments.train` on the toy, four devices as (2, 2, 1)."""
  distributed.start()
  import jax
  import numpy as np

  from experiments import loop
  from experiments import train
  from qempo_jax import sharding
  from qempo_jax.models import parameters
  from tests.loops import toy

  def policy(config):
    mesh = sharding.make_mesh(tuple(config.compute.mesh))
    params = jax.tree.map(np.asarray, parameters.init(jax.random.key(0), toy.MODEL, stddev=0.3))
    params = sharding.place(params, sharding.tree_shardings(params, mesh, sharding.PARAM_RULES))
    return plan.Policy(toy.MODEL, params, toy.ToyTokenizer(), (toy.EOS,), mesh)

  class Faulty(loop.Saver):
    """Kills this process once the checkpoint of `DIES_AFTER` is on disk, or gives it a notice in its first step."""

    def due(self, step):
      if mode == "notice" and step == 1:
        os.kill(os.getpid(), signal.SIGTERM)
      found = super().due(step)
      if mode in ("notice", "slow"):
        time.sleep(1)  # as a step may take: all processes are told meanwhile
      return found

    def save(self, state, step, *rest):
      super().save(state, step, *rest)
      if mode == "dies" and step == DIES_AFTER:
        self._checkpoints.wait()
        os.kill(os.getpid(), signal.SIGKILL)

  build_policy.policy = policy
  loop.Saver = Faulty
  folder = workdir.parent / f"data_{jax.process_index()}"
  folder.mkdir(exist_ok=True)
  config = toy.config(folder)
  config.data.source = f"jsonl:{workdir.parent / 'data_0' / 'prompts.jsonl'}"
  config.steps, config.compute.mesh = STEPS, (2, 2, 1)
  config.constraints.quality.bound, config.constraints.kl.bound = 0.6, 0.1
  config.sampling.group_size, config.checkpoint.every = 4, DIES_AFTER
  config.optimizer.learning_rate = 1e-3
  if mode in STALE:
    config.sampling.stale_steps, config.replay.size, config.replay.min_reward = 1, 2, -5.0
    folder = workdir.parent / "judge" if mode == "reward_model" else ""
    config.reward.function, config.reward.max = f"{STALE[mode]}{folder}", 10.0
    config.constraints.quality.bound = None if mode == "reward_model" else 0.6
  if mode == "patience":
    config.evaluation.every, config.evaluation.patience, config.optimizer.learning_rate = 1, 1, 1e-12
    config.evaluation.splits, config.evaluation.max_prompts = (config.data.source,), 2
    config.evaluation.prompts_per_batch, config.evaluation.samples_per_prompt = 2, 4
  train.main(config, workdir, False)


if __name__ == "__main__":
  _worker(pathlib.Path(sys.argv[1]), sys.argv[2])
