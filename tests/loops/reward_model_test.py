"""The reward-model program on a tiny model: pairs parted by prompt, resume bit for bit, results, use as a reward."""

import errno
import json
import os

import jax
import numpy as np
import pytest

from configs import base
from experiments import build
from experiments import loop
from experiments.configured import data as build_data
from experiments.configured import policy as build_policy
from experiments.configured import reward_data
from experiments.train_reward_model import main
from qempo_jax.errors import InputError
from qempo_jax.evaluation import reward_report
from qempo_jax.models import export
from qempo_jax.models import parameters
from qempo_jax.models import reward_checkpoint
from qempo_jax.models.config import ModelConfig
from tests.metrics_file import timeless

WORDS = [f"w{index}" for index in range(40)]
MODEL = ModelConfig(48, 32, 48, 3, 4, 2, 8, 100.0, 1e-5, True)


def tokenizer():
  """Whole words; pads with a token that ends nothing."""
  import tokenizers
  import transformers

  words = ["<pad>", "<unk>", "<eos>", *WORDS]
  inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
  inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=inner, pad_token="<eos>", unk_token="<unk>", eos_token="<eos>"
  )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """A folder with a random model and its tokenizer."""
  params = parameters.init(jax.random.key(0), MODEL, stddev=0.3)
  return export.export_model(tmp_path_factory.mktemp("m") / "tiny", params, MODEL, tokenizer=tokenizer())


def write_pairs(path, count, *, seed=0):
  """The chosen response is of the first two words, the rejected one of two others."""
  rng = np.random.default_rng(seed)
  word = lambda low, high: WORDS[rng.integers(low, high)]
  with open(path, "w", encoding="utf-8") as file:
    for index in range(count):
      good, bad = (" ".join(["", *(word(low, low + 2) for _ in range(3))]) for low in (0, 4))
      row = {"prompt": f"{word(8, 40)} {word(8, 40)} w{index % 40}", "chosen": good, "rejected": bad}
      row |= {"score_chosen": 3, "score_rejected": 1}
      file.write(json.dumps(row) + "\n")


def make_config(folder, source, **changes):
  config = base.get_config()
  config.steps = 16
  config.model.source = str(source)
  write_pairs(folder / "pairs.jsonl", 120)
  config.reward_model.sources = (f"jsonl:{folder / 'pairs.jsonl'}",)
  config.reward_model.heldout_share = 0.2
  config.reward_model.validation_share = 0.2
  config.reward_model.trainable = "last:1"
  config.reward_model.cache = True
  config.reward_model.validate_every = 6
  config.optimizer.learning_rate = 1e-2
  config.compute.bucket = 16
  config.compute.mesh = (8, 1, 1)
  config.checkpoint.every = 6
  config.reward_model.update(changes)
  return config


@pytest.fixture(scope="module")
def run(tmp_path_factory, source):
  folder = tmp_path_factory.mktemp("run")
  main(make_config(folder, source), folder / "w", False)
  return folder


def _metrics(workdir):
  return timeless(workdir / "metrics.jsonl")


def test_it_learns_and_reports(run):
  results = json.loads((run / "w" / "results.json").read_text())
  held = results["heldout"]
  assert held["accuracy"] > 0.8 and held["accuracy_interval"][0] > 0.5
  assert held["by_source"]["pairs"]["pairs"] == held["pairs"]
  assert results["steps"] == 16 and len(_metrics(run / "w")) == 16
  assert "validation/accuracy" in _metrics(run / "w")[5]


def test_a_resumed_run_is_the_same_bit_for_bit(run, tmp_path, source):
  class Stop(Exception):
    pass

  class Interrupting:
    def step(self, step, metrics):
      if step == 9:
        raise Stop

    def note(self, line):
      pass

  config = make_config(run, source)
  (tmp_path / "w").mkdir()
  with pytest.raises(Stop):
    loop.train(build.reward_run(config)[0], tmp_path / "w", Interrupting())
  main(config, tmp_path / "w", False)
  assert _metrics(tmp_path / "w") == _metrics(run / "w")
  ours, theirs = (reward_checkpoint.load(folder / "w" / "model")[1] for folder in (tmp_path, run))
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_the_workdir_serves_as_a_reward_and_scores_as_in_training(run, source):
  config = make_config(run, source)
  config.reward.function = f"reward_model:{run / 'w'}"
  reward = build_data.reward(config)
  parts = reward_data.parts(config, build_policy.reward_policy(config).tokenizer)["heldout"]
  texts = [[*p, *r] for p, pair in zip(parts.prompts, parts.responses) for r in pair]
  scores = np.array(reward.score_ids(texts)).reshape(-1, 2)
  no_constant = lambda word: pytest.fail(f"{word} is not JSON")
  held = json.loads((run / "w" / "results.json").read_text(), parse_constant=no_constant)["heldout"]
  np.testing.assert_allclose(np.mean(scores[:, 0] - scores[:, 1]), held["margin"]["mean"], rtol=1e-4)
  good, bad = reward(["w9 w10 w1"] * 2, ["w0 w1", "w5 w4"], other=[1, 2])
  assert good > bad


def test_no_prompt_is_in_two_parts_and_heldout_files_win(tmp_path, source):
  config = make_config(tmp_path, source)
  lines = (tmp_path / "pairs.jsonl").read_text().splitlines()
  (tmp_path / "more.jsonl").write_text("\n".join(lines[:10]))
  config.reward_model.heldout = (f"jsonl:{tmp_path / 'more.jsonl'}",)
  parts = reward_data.parts(config, tokenizer())
  keys = {part: set(found.prompt_keys) for part, found in parts.items()}
  assert not keys["train"] & keys["validation"] and not keys["heldout"] & (keys["train"] | keys["validation"])
  assert all(len(found.prompts) for found in parts.values())
  held = {tuple(prompt) for prompt in parts["heldout"].prompts}
  assert all(tuple(tokenizer().encode(json.loads(line)["prompt"])) in held for line in lines[:10])


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"sources": ()}, "sources names no file"),
    ({"sources": ("jsonl:$NOT_SET_HERE/x.jsonl",)}, "environment variable"),
    ({"trainable": "all"}, "cache needs frozen"),
    ({"heldout_share": 0.9}, "below 1"),
    ({"heldout": ("csv:x",)}, "jsonl:PATH"),
  ],
)
def test_mistakes_in_the_config_are_said_in_a_line(tmp_path, source, changes, message):
  with pytest.raises(InputError, match=message):
    reward_data.parts(make_config(tmp_path, source, **changes), tokenizer())


def test_margins_follow_the_scores_of_the_file(tmp_path, source):
  parts = reward_data.parts(make_config(tmp_path, source, margin_scale=0.25), tokenizer())
  np.testing.assert_allclose(parts["train"].margins, 0.5)


def test_report_of_scores_worked_out_by_hand():
  scores = np.array([[2.0, 1.0], [0.0, 1.0], [1.0, 1.0], [3.0, 0.0]])
  lengths = np.array([[5, 3], [2, 4], [3, 3], [1, 9]])
  found = reward_report.pair_report(scores, lengths, np.array(["a", "a", "b", "c"]), seed=0)
  assert found["accuracy"] == 0.625 and found["prompts"] == 3
  assert found["length"]["longer_is_chosen"] == 0.375
  assert found["length"]["accuracy_chosen_shorter"]["accuracy"] == 0.5
  assert found["length"]["accuracy_chosen_longer"]["accuracy"] == 1.0
  stated = 1 / (1 + np.exp(-np.array([1.0, 1.0, 0.0, 3.0])))
  np.testing.assert_allclose(found["calibration"]["expected_accuracy"], stated.mean())
  low, high = reward_report.wilson(60, 100)[1:]
  np.testing.assert_allclose([low, high], [0.5020, 0.6906], atol=1e-4)


def test_intervals_over_prompts_are_wider_where_pairs_of_a_prompt_agree():
  right = np.repeat(np.random.default_rng(0).integers(0, 2, 30), 10).astype(float)
  alike = reward_report.cluster_interval(right, np.repeat(np.arange(30), 10), seed=0)
  apart = reward_report.cluster_interval(right, np.arange(300), seed=0)
  assert alike.high - alike.low > 2 * (apart.high - apart.low)


def test_files_of_one_name_are_all_read(tmp_path, source):
  for folder, seed in (("a", 1), ("b", 2)):
    (tmp_path / folder).mkdir()
    write_pairs(tmp_path / folder / "train.jsonl", 30, seed=seed)
  with open(tmp_path / "b" / "train.jsonl", "a", encoding="utf-8") as file:
    file.write("{}\n")
  names = tuple(f"jsonl:{tmp_path / folder / 'train.jsonl'}" for folder in ("a", "b"))
  config = make_config(tmp_path, source, sources=names)
  with pytest.raises(InputError, match="on_bad_row"):
    reward_data.parts(config, tokenizer())
  config.data.on_bad_row, config.data.max_bad_share = "skip", 0.1
  parts = reward_data.parts(config, tokenizer())
  assert sum(len(part.prompts) for part in parts.values()) == 60
  assert set(parts["train"].sources) == {"a/train", "b/train"}


@pytest.mark.parametrize(("key", "value"), [("compute.micro_batches", 2), ("model.dtype", "bfloat16")])
def test_keys_that_reward_models_do_not_read_are_refused(tmp_path, source, key, value):
  config = make_config(tmp_path, source)
  config.update_from_flattened_dict({key: value})
  with pytest.raises(InputError, match=f"config.{key}="):
    build_policy.reward_policy(config)


def test_a_cache_without_room_is_one_error(tmp_path, source, monkeypatch):
  def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(os, "posix_fallocate", full)
  with pytest.raises(InputError, match="frozen.float32 takes 0.00 GB.*No space left.*reward_model.cache to False"):
    main(make_config(tmp_path, source), tmp_path / "w", False)
  assert not (tmp_path / "w" / "frozen.float32").exists()
