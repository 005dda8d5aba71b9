"""A reward model as a reward function: shapes, order, prompts in every form, and what is refused."""

import numpy as np
import pytest

from configs import base
from experiments.configured import data as build_data
from qempo_jax import sharding
from qempo_jax.data import templates
from qempo_jax.errors import InputError
from qempo_jax.models import reward_checkpoint
from qempo_jax.models import reward_head
from qempo_jax.rewards import checked
from qempo_jax.rewards import reward_model
from tests.loops.reward_model_test import tokenizer
from tests.models.reward_head_test import GOLDEN

TEMPLATE = "{% for m in messages %}w1 {{ m['content'] }} <eos> {% endfor %}{% if add_generation_prompt %}w2 {% endif %}"


@pytest.fixture(scope="module")
def loaded():
  config, params, pad = reward_checkpoint.load(GOLDEN / "llama")
  return reward_model.Loaded(config, params, tokenizer(), pad, sharding.make_mesh((8, 1, 1)), True)


def _placed(loaded, **changes):
  import jax

  where = sharding.tree_shardings(loaded.params, loaded.mesh, reward_head.RULES)
  return loaded._replace(params=jax.device_put(loaded.params, where), **changes)


def test_token_ids_score_as_pytorch_whatever_batch_and_bucket(loaded):
  found = np.load(GOLDEN / "llama" / "expected.npz")
  rows = [row.tolist() for row in np.split(found["token_ids"], np.cumsum(found["lengths"])[:-1])]
  for batch_size, bucket in ((8, 64), (8, 4)):
    reward = reward_model.RewardModel(_placed(loaded), batch_size=batch_size, bucket=bucket)
    np.testing.assert_allclose(reward.score_ids(rows * 5), np.tile(found["right"], 5), rtol=0, atol=1e-4)


def test_texts_are_scored_with_template_and_ending_token_in_their_order(loaded):
  templated = tokenizer()
  templated.chat_template = TEMPLATE
  reward = reward_model.RewardModel(_placed(loaded, tokenizer=templated), batch_size=8, bucket=8)
  ids = templated.convert_tokens_to_ids
  long = ["w1", "w3", "<eos>", "w2", "w4", "w5", "w6", "<eos>"]
  expected = reward.score_ids([ids(["w1", "w3", "<eos>", "w2", "w4", "<eos>"]), ids(long)])
  assert reward(["w3", "w3"], ["w4", "w4 w5 w6"], column=[1, 2]) == pytest.approx(expected, abs=1e-5)
  assert reward(["w3", "w3"], ["w4 w5 w6", "w4"]) == pytest.approx(expected[::-1], abs=1e-5)
  user, assistant = {"role": "user", "content": "w3"}, {"role": "assistant", "content": "w4"}
  assert reward([[user]], [[assistant]]) == pytest.approx(expected[:1], abs=1e-5)
  talk = [user, assistant, {"role": "user", "content": "w7"}]
  whole = ids(["w1", "w3", "<eos>", "w1", "w4", "<eos>", "w1", "w7", "<eos>", "w2", "w4", "<eos>"])
  assert reward([talk], ["w4"]) == pytest.approx(reward.score_ids([whole]), abs=1e-5)
  assert reward([], []) == [] and all(type(score) is float for score in expected)
  np.testing.assert_allclose(checked.scores(reward, ["w3"], ["w4"], {}), expected[:1], atol=1e-5)


def test_a_classifier_from_elsewhere_scores_the_templates_whole_rendering(loaded):
  templated = tokenizer()
  templated.chat_template = TEMPLATE.replace("<eos> ", "<eos> w9 ") + "{% if brief is defined %}w8 {% endif %}"
  ids = templated.convert_tokens_to_ids
  score = lambda texts, **changes: reward_model.RewardModel(
    _placed(loaded, tokenizer=templated, **changes), batch_size=8, bucket=8
  )(["w3"], texts)
  scored = lambda *names: reward_model.RewardModel(_placed(loaded), batch_size=8, bucket=8).score_ids(
    [ids(list(names))]
  )
  whole = ["w1", "w3", "<eos>", "w9", "w1", "w4", "<eos>", "w9"]
  turns = [{"role": "user", "content": "w3"}, {"role": "assistant", "content": "w4"}]
  assert templated.apply_chat_template(turns, return_dict=False) == ids(whole)
  assert score(["w4"], foreign=True) == pytest.approx(scored(*whole), abs=1e-5)
  own = ["w1", "w3", "<eos>", "w9", "w2", "w4", "<eos>"]
  assert score(["w4"]) == pytest.approx(scored(*own), abs=1e-5)  # trained here: at the token that ends the response
  reward = reward_model.RewardModel(_placed(loaded, tokenizer=templated, foreign=True), batch_size=8, bucket=8)
  given = reward(["w3"], ["w4"], chat_template_kwargs=[{"brief": True}])
  assert given == pytest.approx(scored(*whole, "w8"), abs=1e-5)


def test_a_reward_models_template_has_defaults_of_its_own_not_the_policys(tmp_path, loaded):
  templated, config = tokenizer(), base.get_config()
  templated.chat_template = TEMPLATE.replace("w1", "{{ style | default('w5') }}")
  rewards = {}
  for name, options in (("plain", {}), ("configured", {"style": "w7"})):  # the second as a run that trains it has it
    templates.configure(templated, options=options)
    reward_checkpoint.export(
      tmp_path / name, loaded.params, loaded.config, pad_token_id=loaded.pad_token_id, tokenizer=templated
    )
    config.model.chat_template_kwargs = "style='w9'"  # the policy's
    config.reward.function = f"reward_model:{tmp_path / name}"
    rewards[name] = build_data.reward(config)
  ids = templated.convert_tokens_to_ids
  expected = {
    style: rewards["plain"].score_ids([ids([style, "w3", "<eos>", "w2", "w4", "<eos>"])])[0]
    for style in ("w5", "w7", "w8")
  }
  assert len({round(score, 4) for score in expected.values()}) == 3
  rows = {"chat_template_kwargs": [None, {"style": "w8"}]}
  for name, own in (("plain", "w5"), ("configured", "w7")):
    found = rewards[name](["w3"] * 2, ["w4"] * 2, **rows)
    assert found == pytest.approx([expected[own], expected["w8"]], abs=1e-5)


def test_an_export_of_ours_is_known_and_another_classifier_is_foreign(tmp_path):
  config, params, pad = reward_checkpoint.load(GOLDEN / "llama")
  assert not reward_checkpoint.is_own(GOLDEN / "llama")
  assert reward_checkpoint.is_own(reward_checkpoint.export(tmp_path / "own", params, config, pad_token_id=pad))


def test_forms_that_are_no_texts_are_refused(loaded):
  reward = reward_model.RewardModel(_placed(loaded))
  with pytest.raises(InputError, match="1 prompts for 2"):
    reward(["w1"], ["w2", "w3"])
  with pytest.raises(InputError, match="neither a text nor messages"):
    reward([[1]], ["w2"])
  with pytest.raises(InputError, match="2 messages"):
    reward(["w1"], [[{"role": "assistant", "content": "w2"}] * 2])


def test_a_folder_without_a_reward_model_is_refused(tmp_path):
  with pytest.raises(InputError, match="holds no reward model"):
    checked.load(f"reward_model:{tmp_path}")


def test_a_tokenizer_with_more_tokens_than_the_embedding_is_refused(monkeypatch):
  larger = tokenizer()
  larger.add_tokens([f"more{index}" for index in range(200)])
  monkeypatch.setattr(reward_model.tokenization, "load_tokenizer", lambda place: larger)
  with pytest.raises(InputError, match="resize the model's embedding"):
    reward_model.load_model(GOLDEN / "llama")


def test_a_completion_with_a_token_that_has_no_row_is_not_scored(loaded):
  other = tokenizer()
  setattr(other, templates.ROWLESS, ("w9",))
  reward = reward_model.RewardModel(_placed(loaded, tokenizer=other), batch_size=8, bucket=8)
  found = reward(["w3"] * 3, ["w4", "w9", "w5"])
  assert found[1] is None and [found[0], found[2]] == reward(["w3"] * 2, ["w4", "w5"])


def test_the_padding_token_never_ends_a_response():
  assert reward_model.padding_id(tokenizer()) == tokenizer().unk_token_id  # its pad_token is its ending token
  other = tokenizer()
  other.pad_token = "<pad>"
  assert reward_model.padding_id(other) == other.convert_tokens_to_ids("<pad>")


def test_a_completion_that_spells_a_stop_token_is_scored_too(loaded):
  reward = reward_model.RewardModel(_placed(loaded), batch_size=8, bucket=8)
  prompt = reward._model.tokenizer("w3", add_special_tokens=False)["input_ids"]
  ids = reward._model.tokenizer.convert_tokens_to_ids
  expected = reward.score_ids([prompt + ids(["w4", "<eos>", "w5", "<eos>"]), prompt + ids(["w6", "<eos>"])])
  assert reward(["w3", "w3"], [" w4 <eos> w5", " w6"]) == pytest.approx(expected, abs=1e-5)
