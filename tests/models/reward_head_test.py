"""The scalar head against PyTorch transformers' sequence classifiers, both ways, and its parts."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax.errors import InputError
from qempo_jax.models import parameters
from qempo_jax.models import reward_checkpoint
from qempo_jax.models import reward_head

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "reward_models"
NAMES = ("llama", "qwen2")
TOLERANCE = 1e-4
PAD = 5
SCORE_ROWS = jax.jit(reward_head.score_rows, static_argnums=1)


def _golden(name):
  found = np.load(GOLDEN / name / "expected.npz")
  return np.split(found["token_ids"], np.cumsum(found["lengths"])[:-1]), found


def _padded(rows, side):
  width = max(map(len, rows)) + 2
  tokens, valid = np.full((len(rows), width), PAD, np.int32), np.zeros((len(rows), width), bool)
  for index, row in enumerate(rows):
    place = slice(0, len(row)) if side == "right" else slice(width - len(row), None)
    tokens[index, place], valid[index, place] = row, True
  return jnp.asarray(tokens), jnp.asarray(valid)


def _scores(config, params, rows, side, last=None):
  tokens, valid = _padded(rows, side)
  last = reward_head.last_unlike_padding(tokens, PAD) if last is None else last(valid)
  return np.asarray(SCORE_ROWS(params, config, tokens, valid, last))


@pytest.mark.parametrize("name", NAMES)
def test_scores_equal_pytorch(name):
  config, params, pad = reward_checkpoint.load(GOLDEN / name)
  rows, golden = _golden(name)
  for side in ("left", "right"):
    scores = _scores(config, params, rows, side)
    assert pad == PAD and scores.shape == (len(rows), 1) and scores.dtype == np.float32
    np.testing.assert_allclose(scores[:, 0], golden[side], rtol=0, atol=TOLERANCE)


def test_a_text_that_ends_with_the_padding_token_is_read_before_it_as_transformers_does():
  config, params, _ = reward_checkpoint.load(GOLDEN / "llama")
  rows, golden = _golden("llama")
  by_mask = _scores(config, params, rows, "right", reward_head.last_valid)[:, 0]
  np.testing.assert_allclose(by_mask[:3], golden["right"][:3], atol=TOLERANCE)
  assert abs(by_mask[3] - golden["right"][3]) > 100 * TOLERANCE


def test_last_places_on_either_side():
  tokens = jnp.array([[7, 8, PAD, PAD], [PAD, PAD, 7, 8], [7, PAD, 8, PAD], [PAD] * 4])
  assert reward_head.last_unlike_padding(tokens, PAD).tolist() == [1, 3, 2, 0]
  assert reward_head.last_valid(tokens != PAD).tolist() == [1, 3, 2, 3]


@pytest.mark.parametrize("name", NAMES)
def test_an_export_holds_the_same_tensors_and_says_what_it_is(name, tmp_path):
  config, params, _ = reward_checkpoint.load(GOLDEN / name)
  folder = reward_checkpoint.export(tmp_path / "out", params, config, pad_token_id=PAD)
  described = json.loads((folder / "config.json").read_text())
  original = json.loads((GOLDEN / name / "config.json").read_text())
  for key in ("architectures", "pad_token_id", "id2label", "model_type"):
    assert described[key] == original[key]
  assert described["num_labels"] == 1 and reward_checkpoint.is_checkpoint(folder)
  again, tensors, pad = reward_checkpoint.load(folder)
  assert (again, pad) == (config, PAD)
  jax.tree.map(np.testing.assert_array_equal, tensors, params)


@pytest.mark.slow  # live; the golden scores stand in for it
@pytest.mark.parametrize("name", NAMES)
def test_live_both_ways_with_pytorch(name, tmp_path):
  torch = pytest.importorskip("torch", reason="PyTorch is not installed; the golden stands in for it")
  transformers = pytest.importorskip("transformers")
  from tests.golden import make_reward_model_goldens as maker

  kind, options = maker.CASES[name]
  torch_model = maker.random_classifier(kind, options)
  torch_model.save_pretrained(tmp_path / "in")
  config, params, _ = reward_checkpoint.load(tmp_path / "in")
  rows = maker.sequences(seed=8)
  reward_checkpoint.export(tmp_path / "out", params, config, pad_token_id=PAD)
  reloaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype=torch.float32)
  assert type(reloaded) is type(torch_model)
  for side in ("left", "right"):
    own = _scores(config, params, rows, side)[:, 0]
    np.testing.assert_allclose(own, maker.scores(torch_model, rows, side), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(own, maker.scores(reloaded, rows, side), rtol=0, atol=TOLERANCE)


def test_wrong_checkpoints_are_refused_by_name(tmp_path):
  def altered(**changes):
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    shutil.copytree(GOLDEN / "llama", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder

  with pytest.raises(InputError, match="2 labels"):
    reward_checkpoint.load(altered(id2label={"0": "a", "1": "b"}))
  with pytest.raises(InputError, match="score.weight|shape"):
    reward_checkpoint.load(altered(hidden_size=32, head_dim=4))
  with pytest.raises(InputError, match="config.json"):
    reward_checkpoint.load(tmp_path)


@pytest.mark.parametrize("trainable", ["all", "head", "last:1", "last:3"])
def test_split_and_join_are_inverse(trainable):
  config, params, _ = reward_checkpoint.load(GOLDEN / "qwen2")
  trained, frozen = reward_head.split(params, config, trainable)
  assert "score" in trained
  assert reward_head.frozen_blocks(frozen) == {"all": 0, "head": 3, "last:1": 2, "last:3": 0}[trainable]
  jax.tree.map(np.testing.assert_array_equal, reward_head.join(trained, frozen), params)


@pytest.mark.parametrize("trainable", ["last:0", "last:4", "last:x", "none"])
def test_other_choices_of_what_is_trained_are_refused(trainable):
  config, params, _ = reward_checkpoint.load(GOLDEN / "qwen2")
  with pytest.raises(InputError, match="last:N"):
    reward_head.split(params, config, trainable)


def test_a_language_model_starts_with_a_head_that_scores_nothing_and_no_projection():
  config, params, _ = reward_checkpoint.load(GOLDEN / "llama")
  untied = dataclasses.replace(config, tie_embeddings=False)
  whole = parameters.init(jax.random.key(0), untied)
  shape, made = reward_head.from_decoder(untied, whole)
  assert shape.tie_embeddings and "unembedding" not in made
  assert made["score"].shape == (16, 1) and not made["score"].any()
  rows, _ = _golden("llama")
  assert not _scores(shape, made, rows, "left").any()
