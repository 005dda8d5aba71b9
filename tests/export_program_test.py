"""The export program: a trained checkpoint, or a plain model, ends as a folder that is read back."""

import json
import pathlib
import types

import jax
import numpy as np
import pytest

from configs import base
from experiments import build
from experiments import cli
from experiments import export
from experiments import plan
from experiments.configured import policy as build_policy
from experiments.run import checkpoints
from experiments.run import workdir as workdirs
from qempo_jax.models import conversion
from qempo_jax.models import lora_peft
from qempo_jax.models import verify_export

FAMILY = pathlib.Path(__file__).parent / "golden" / "families" / "llama3"
CONFIG = """
from configs import base

def get_config():
  config = base.get_config()
  config.model.source = {source!r}
  return config
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
  """Runs the program with more arguments; the model has no tokenizer, so one that writes nothing stands in."""
  config = tmp_path / "config.py"
  config.write_text(CONFIG.format(source=str(FAMILY)))
  vocabulary = {str(index): index for index in range(60)}  # of the embedding's 64 rows
  stand_in = types.SimpleNamespace(get_vocab=lambda: vocabulary, eos_token_id=2, save_pretrained=lambda folder: None)
  monkeypatch.setattr(build_policy.tokenization, "load_tokenizer", lambda source: stand_in)

  def run(*arguments):
    cli.run(
      export.main, description="", example="", argv=[f"--config={config}", f"--workdir={tmp_path / 'run'}", *arguments]
    )

  return run


def _config():
  config = base.get_config()
  config.model.source = str(FAMILY)
  return config


def _train(workdir, *, lora_rank=0):
  """A workdir with a checkpoint whose parameters are not the model's own."""
  config = _config()
  config.lora.rank = lora_rank
  policy = build_policy.policy(config)
  workdirs.open_workdir(workdir, config)
  state, _ = plan.initial(build.plan(config, policy, trains=False).first_state, policy.params, policy.mesh)
  moved = jax.tree.map(lambda leaf: leaf + 0.5, state.params)
  saved = build.saving(config).open(workdir)
  saved.save(state.replace(step=state.step + 3, params=moved), {})
  saved.close()
  return policy, moved


def _same(params, expected, **tolerance):
  jax.tree.map(lambda leaf, own: np.testing.assert_allclose(leaf, np.asarray(own), **tolerance), params, expected)


def test_a_plain_model_goes_out(program, tmp_path, capsys):
  program()
  config, params = conversion.load(tmp_path / "run" / "export")
  own_config, own = conversion.load(FAMILY)
  assert config == own_config
  _same(params, own, rtol=0, atol=0)
  printed = capsys.readouterr().out
  assert "no checkpoint" in printed and ("was not verified" in printed or "verified with PyTorch" in printed)


def test_the_newest_checkpoint_goes_out_in_several_ways(program, tmp_path, capsys):
  _, moved = _train(tmp_path / "run")
  program()
  _same(conversion.load(tmp_path / "run" / "export")[1], moved, rtol=0, atol=0)
  assert "the policy after step 3" in capsys.readouterr().out
  half = tmp_path / "half"
  program("--config.export.dtype=bfloat16", f"--config.export.target={half}", "--config.export.max_shard_gb=4e-6")
  assert json.loads((half / "config.json").read_text())["dtype"] == "bfloat16"
  assert len(list(half.glob("model-*.safetensors"))) > 1
  _same(conversion.load(half)[1], moved, rtol=2**-8, atol=0)


def _measured(workdir, qualities):
  """A run with a floor whose checkpoints were measured; parameters of STEP are the model's plus STEP."""
  config = _config()
  config.constraints.quality.bound = 0.5
  policy = build_policy.policy(config)
  workdirs.open_workdir(workdir, config)
  state, _ = plan.initial(build.plan(config, policy, trains=False).first_state, policy.params, policy.mesh)
  config.checkpoint.keep = 9
  saved = build.saving(config).open(workdir)
  for step, quality in qualities.items():
    moved = jax.tree.map(lambda leaf, step=step: leaf + step, state.params)
    saved.save(state.replace(step=state.step + step, params=moved), {}, quality)
    saved.wait()
  saved.close()
  return policy


def test_the_checkpoint_that_was_asked_for_goes_out(program, tmp_path, capsys):
  qualities = {1: (5.0, 0.1), 2: (4.0, 0.0), 3: (3.0, 0.0)}
  policy = _measured(tmp_path / "run", {at: {"entropy": e, "shortfall": s} for at, (e, s) in qualities.items()})
  config = _config()
  bounded, free = config.copy_and_resolve_references(), config
  bounded.constraints.quality.bound = 0.5
  for asked, of_run, step, why in (
    (None, bounded, 2, "the best: highest entropy within the bounds"),
    (None, free, 3, "the last (no constraint has a bound)"),
    ("best", free, 2, "the best: highest entropy within the bounds"),
    ("last", bounded, 3, "the last"),
    (1, bounded, 1, "as asked"),
  ):
    notes = []
    found = build.plan(of_run, policy, trains=False), build.saving(of_run), tmp_path / "run"
    params, what = checkpoints.trained_params(*found, asked, note=notes.append)
    np.testing.assert_allclose(params["embedding"], np.asarray(policy.params["embedding"]) + step, rtol=1e-6)
    assert (
      notes == [f"Checkpoint: step {step}, {why}; those there are 1, 2, 3"] and what == f"the policy after step {step}"
    )
  program("--config.constraints.quality.bound=0.5", "--checkpoint=1")
  found = conversion.load(tmp_path / "run" / "export")[1]
  np.testing.assert_allclose(found["embedding"], np.asarray(policy.params["embedding"]) + 1, rtol=1e-6)
  assert "Checkpoint: step 1, as asked" in capsys.readouterr().out


def test_a_checkpoint_that_is_not_there_is_one_line(program, tmp_path, capsys):
  def line(*arguments):
    with pytest.raises(SystemExit) as caught:
      program("--config.constraints.quality.bound=0.5", *arguments)
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.count("\n") == 1 and not (tmp_path / "run" / "export").exists()
    return error

  assert "there is no checkpoint in" in line("--checkpoint=last")
  _measured(tmp_path / "run", {1: None, 3: None})
  assert "no checkpoint of step 2 in" in (found := line("--checkpoint=2")) and "choose one of 1, 3" in found
  assert "was measured, so none is best: --checkpoint=last, or a step of 1, 3" in line("--checkpoint=best")
  notes, config = [], _config()
  config.constraints.quality.bound = 0.5
  found = build.plan(config, build_policy.policy(config), trains=False), build.saving(config), tmp_path / "run"
  checkpoints.trained_params(*found, note=notes.append)
  assert "step 3, the last (none was measured)" in notes[0]


@pytest.mark.slow
def test_adapters_go_out_merged(program, tmp_path):
  policy, _ = _train(tmp_path / "run", lora_rank=2)
  program("--config.lora.rank=2")
  _, params = conversion.load(tmp_path / "run" / "export")
  assert np.abs(params["layers"]["query"] - np.asarray(policy.params["layers"]["query"])).max() > 0.1
  np.testing.assert_array_equal(params["embedding"], np.asarray(policy.params["embedding"]))


def test_adapters_go_out_alone(program, tmp_path, capsys):
  policy, trained = _train(tmp_path / "run", lora_rank=2)
  program("--config.lora.rank=2", "--config.export.adapters=True")
  written = lora_peft.read(tmp_path / "run" / "export", policy.config)
  jax.tree.map(np.testing.assert_array_equal, written["layers"]["query"].a, trained["layers"]["query"].a)
  with pytest.raises(SystemExit):
    program("--config.export.adapters=True", f"--config.export.target={tmp_path / 'other'}")
  assert "this run has none (lora.rank=0)" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ("--config.export.dtype=float8", "config.export.dtype='float8' is not one of float32"),
    ("--config.export.max_shard_gb=0.0", "max_shard_gb=0.0 must be above 0"),
    ("--config.export.target={here}", "is not empty"),
    ("--config.seed=5", "holds the run of another config (seed is 0 there and 5 here)"),
  ],
)
def test_a_mistake_is_one_line_and_writes_nothing(program, tmp_path, capsys, argument, message):
  workdirs.open_workdir(tmp_path / "run", _config())
  (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
  # The config is a module: Python keeps its bytecode beside it.
  written = lambda: sorted(path.name for path in tmp_path.rglob("*") if "__pycache__" not in path.parts)
  before = written()
  with pytest.raises(SystemExit) as caught:
    program(argument.format(here=tmp_path))
  error = capsys.readouterr().err
  assert caught.value.code == 2 and message in error and error.count("\n") == 1
  assert written() == before


def test_an_export_that_computes_something_else_is_said(program, tmp_path, monkeypatch, capsys):
  failing = lambda *args, **kwargs: (_ for _ in ()).throw(verify_export.InputError("logits differ by 1"))
  monkeypatch.setattr(verify_export, "verify_export", failing)
  with pytest.raises(SystemExit):
    program()
  assert "logits differ by 1" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(program, tmp_path):
  program("--dry_run")
  assert not (tmp_path / "run").exists()
