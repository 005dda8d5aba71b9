"""Responses end at stop strings, and the config's keys of sampling are read or refused."""

import json

import jax
import numpy as np
import pytest

from experiments import build
from experiments import samples
from experiments.configured import sampling as build_sampling
from experiments.measure import samples_once
from qempo_jax.errors import InputError
from qempo_jax.logit_transform import LogitTransform
from qempo_jax.sampling import stop_strings
from qempo_jax.types import Rollout
from tests.loops import toy

STRINGS = ("2 4", "3")


def test_a_response_ends_with_the_token_that_completes_a_string():
  words = ["a", "bc", "d", "STOP", "x", "<end>"]
  decode = lambda ids: "".join(words[i] for i in ids if i != 5)
  tokens = np.array([[[0, 1, 2, 4], [0, 3, 4, 5], [2, 1, 5, 0], [1, 2, 5, 0]]])
  mask, numbers = tokens >= 0, np.arange(16.0).reshape(1, 4, 4)
  mask[0, 2:, 3] = False
  rollout = Rollout(tokens, mask, numbers, numbers, np.array([[True, False, False, False]]), None)
  found = stop_strings.cut(rollout, decode, ("cd", "STOP", "never"))
  assert found.mask.sum(-1).tolist() == [[3, 2, 3, 2]] and not found.truncated.any()
  assert found.log_probs[0, 1].tolist() == [4, 5, 0, 0] and found.tokens[0, 3].tolist() == [1, 2, 0, 0]
  again = stop_strings.cut(found, decode, ("cd", "STOP", "never"))
  jax.tree.map(np.testing.assert_array_equal, again, found)
  assert stop_strings.ending_ids(lambda ids: decode(ids), 6, ("cd", "STOP")) == (3,)
  assert stop_strings.before("abcd STOP", ("STOP", "cd")) == "ab" and stop_strings.before("ab", ("c",)) is None


def test_samples_are_beginnings_of_those_without_stop_strings(tmp_path):
  policy, config = toy.policy(), toy.config(tmp_path)
  rows = [{"prompt": prompt} for prompt in toy.PROMPTS]
  settings = build_sampling.sampling(config, policy)
  draw = lambda settings: samples.GroupSampler(policy, settings, rows)(policy.params, rows, jax.random.key(0), 64)
  plain, ended = draw(settings), draw(settings._replace(stop_strings=STRINGS))
  shorter = 0
  for row, sample in np.ndindex(2, 64):
    whole, response = plain.responses[row][sample], ended.responses[row][sample]
    holds = [any(s in policy.tokenizer.decode(whole[:n]) for s in STRINGS) for n in range(1, len(whole) + 1)]
    length = holds.index(True) + 1 if any(holds) else len(whole)
    np.testing.assert_array_equal(response, whole[:length])
    text = plain.texts[row][sample]
    assert ended.texts[row][sample] == min((text.partition(s)[0] for s in STRINGS), key=len)
    at = row, sample
    np.testing.assert_allclose(ended.rollout.log_probs[at][:length], plain.rollout.log_probs[at][:length], atol=1e-5)
    assert not ended.rollout.log_probs[at][length:].any() and not ended.rollout.truncated[at] & any(holds)
    shorter += length < len(whole)
  assert shorter > 20


def test_keys_become_one_transform(tmp_path):
  policy, config = toy.policy(), toy.config(tmp_path)
  assert build_sampling.in_words(build_sampling.sampling(config, policy)) == ""
  config.sampling.top_k, config.sampling.top_p, config.sampling.min_p = 3, 0.9, 0.05
  config.sampling.min_response_length, config.sampling.logit_bias = 2, (("4", -1.5), (5, None))
  found = build_sampling.sampling(config, policy)
  bias = ((4, -1.5), (5, float("-inf")))
  assert found.transform == LogitTransform(3, 0.9, 0.05, 2, (toy.EOS,), bias)
  assert "top-p 0.9" in build_sampling.in_words(found) and "untruncated reference" in build_sampling.in_words(found)
  config.evaluation.temperature, config.evaluation.top_p = 0.0, 0.5
  evaluated = build_sampling.sampling(samples_once.settings(config), policy)
  assert evaluated.transform.greedy and evaluated.transform.top_p == 0.5 and evaluated.temperature == 1.0


@pytest.mark.parametrize(
  ("changes", "text"),
  [
    ({"sampling.temperature": 0.0}, "temperature=0 is greedy"),
    ({"sampling.top_k": 1}, "top_k=1 keeps the likeliest token alone.*nothing to learn from"),
    ({"sampling.min_p": 1.0}, "min_p=1 keeps the likeliest token alone"),
    ({"sampling.top_p": 0.9, "replay.size": 2}, "top_p=0.9 with replay.size=2"),
    ({"sampling.min_p": 0.1, "sampling.stale_steps": 1}, "min_p=0.1 with sampling.stale_steps=1"),
    ({"sampling.stop_strings": ("x",), "offline.loss": "dpo"}, "with offline.loss=dpo"),
    ({"sampling.top_k": 5, "sampling.function": "json.dumps"}, "top_k=5 with sampling.function"),
    ({"sampling.function": "json.nothing"}, "cannot be imported"),
    ({"sampling.function": "json.dumps", "compute.distributed": True}, "use one process"),
    ({"sampling.min_response_length": 4}, "must be below sampling.max_response_length=4"),
    ({"sampling.logit_bias": (("1 2", 1.0),)}, "'1 2' is 2 tokens"),
    ({"sampling.logit_bias": ((6, 1.0),)}, "there is no token 6"),
    ({"sampling.logit_bias": (3, 1.0)}, r"holds 3: write \(token's text or id, nats\)"),
    ({"sampling.stop_strings": ("",)}, "each must be a text"),
  ],
)
def test_what_cannot_be_trained_or_read_is_one_line(tmp_path, changes, text):
  config = toy.config(tmp_path)
  for key, value in changes.items():
    group, name = key.split(".")
    config[group][name] = value
  with pytest.raises(InputError, match=text) as raised:
    build.run(config, toy.policy(), check=False)
  assert "\n" not in str(raised.value)


def test_a_truncated_run_trains_and_its_policy_and_scorer_agree(tmp_path):
  config = toy.small(toy.config(tmp_path))
  config.steps, config.sampling.top_p, config.sampling.min_response_length = 2, 0.8, 1
  config.constraints.quality.bound = 0.5
  state = toy.train(config, tmp_path / "run")
  rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  assert int(state.step) == 2 and not any(row["skipped"] for row in rows)
  assert rows[0]["kl"] > 0.1  # the truncated policy is not the untruncated reference, before any update
  assert all(np.isfinite(row["kl"]) and row["length"] >= 2 for row in rows)
