"""The model card of an exported run: metadata that the hub reads, certificates, figures, data and how to do it again."""

import json

import pytest
import yaml

from configs import base
from experiments.run import model_card
from experiments.run import workdir as workdirs


@pytest.fixture
def config():
  found = base.get_config()
  found.data.source, found.reward.function, found.seed = "hf:org/prompts:train", "my_rewards.polite", 7
  found.constraints.quality.bound = 0.5
  return found


@pytest.fixture
def workdir(tmp_path, config):
  folder = workdirs.open_workdir(tmp_path / "run", config, lock=False)
  rows = [{"step": 1, "reward": 0.25, "entropy": 3.0}, {"step": 2, "reward": 0.75, "dual/quality/multiplier": 4.0}]
  (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  (folder / workdirs.DATA).write_text(json.dumps({"prompts": "abc123"}))
  return folder


def test_metadata_and_how_it_was_made(config, workdir):
  text = model_card.card(config, workdir, "the policy after step 2")
  metadata = yaml.safe_load(text.split("---")[1])
  assert metadata["base_model"] == model_card.DEMO and metadata["datasets"] == ["org/prompts"]
  assert metadata["library_name"] == "transformers" and metadata["tags"] == ["qempo_jax", "qempo_kl"]
  for said in ("seed 7", "abc123", "my_rewards.polite", "quality bound 0.5", "reward 0.75", "multiplier of quality 4"):
    assert said in text
  assert "None: no report was made" in text


def test_certificates_and_figures_come_from_the_report(config, workdir):
  interval = {"mean": 0.9, "low": 0.8, "high": 0.95}
  figures = dict.fromkeys(model_card._FIGURES, interval) | {"num_prompts": 40, "kl": dict.fromkeys(interval)}
  figures["certificates"] = [{"verdict": "MET", "words": "E[r] is at least 0.5."}]
  (workdir / "report").mkdir()
  results = {"methods": {"qempo_kl": {"splits": {"heldout.jsonl": figures}}}}
  (workdir / "report" / "results.json").write_text(json.dumps(results))
  text = model_card.card(config, workdir, "the policy after step 2")
  assert "**MET** on heldout.jsonl: E[r] is at least 0.5." in text
  assert "| reward | 0.9 | 0.8 to 0.95 |" in text and "KL to the base" not in text.split("## Training")[0]


def test_an_exported_run_gets_the_card_and_its_config_and_a_plain_model_does_not(config, workdir, tmp_path):
  target = tmp_path / "export"
  target.mkdir()
  model_card.write(target, config, tmp_path / "no_run", "the model")
  assert not list(target.iterdir())
  model_card.write(target, config, workdir, "the policy after step 2")
  assert {path.name for path in target.iterdir()} == {"README.md", model_card.CONFIG}
  assert json.loads((target / model_card.CONFIG).read_text())["seed"] == 7
