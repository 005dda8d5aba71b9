"""Special tokens from the config to the samples: masked in sampler and scorer, visible to rewards if allowed."""

import dataclasses
import functools
import itertools
import pathlib

import jax
import numpy as np
import pytest
import tokenizers
import transformers

from configs import base
from experiments import build
from experiments.batches import groups
from experiments.configured import policy as build_policy
from experiments.plan import Policy
from qempo_jax.data import special_tokens
from tests.loops import toy

FAMILY = pathlib.Path(__file__).parents[1] / "golden" / "families" / "llama3"
SPECIAL = ["<s>", "</s>", "<u>", "<pad>"]


@functools.cache
def _tokenizer():
  """Letters, neighbours merged in pairs, and four special tokens: 40 of the embedding's 64 rows."""
  letters = "abcdefghijklmnopqrstuvwxyz"
  merges = list(itertools.islice(itertools.pairwise(letters), 10))
  tokens = [*SPECIAL, *letters, *map("".join, merges)]
  inner = tokenizers.Tokenizer(
    tokenizers.models.BPE(vocab={token: id_ for id_, token in enumerate(tokens)}, merges=merges)
  )
  inner.add_special_tokens(SPECIAL)
  inner.decoder = tokenizers.decoders.Fuse()
  return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="<pad>")


def _config(*allowed):
  config = base.get_config()
  config.model.source = str(FAMILY)
  config.sampling.allowed_tokens = allowed
  config.sampling.max_response_length, config.data.max_prompt_length = 6, 64
  config.sampling.temperature = 5.0  # nearly uniform: each of the 64 columns would be drawn often
  config.evaluation.samples_per_prompt, config.evaluation.prompts_per_batch = 64, 2
  config.compute.bucket, config.compute.mesh = 16, (1, 1, -1)
  return config


@pytest.mark.parametrize(("allowed", "masked"), [((), {0, 2, 3}), (("<u>",), {0, 3})])
def test_what_is_sampled_is_scored_and_seen(monkeypatch, allowed, masked):
  monkeypatch.setattr(build_policy.tokenization, "load_tokenizer", lambda source: _tokenizer())
  config, texts = _config(*allowed), []
  policy = build_policy.policy(config)
  assert set(policy.config.forbidden) == masked and policy.config.num_tokens == 40

  def reward(prompts, completions, **columns):
    texts.extend(completions)
    return [0.0] * len(completions)

  rows = [{"prompt": "abc", "split": "train"}, {"prompt": "xyz", "split": "train"}]
  found = build.evaluator(config, policy, rows, reward)(policy.params, method="base", seed=0)
  drawn = {token for row in found for token in row["token_ids"]}
  assert len(found) == 128 and drawn.isdisjoint(masked) and max(drawn) < 40 and len(drawn) == 40 - len(masked)
  np.testing.assert_allclose(
    [row["log_prob"] for row in found], [row["ref_log_prob"] for row in found], rtol=1e-5, atol=1e-5
  )
  assert [row["completion"] for row in found] == texts
  for row in found:
    body = [token for token in row["token_ids"] if token != 1]
    assert (
      row["completion"] == "".join(_tokenizer().convert_ids_to_tokens(body)) and len(row["token_ids"]) - len(body) < 2
    )
    assert row["noncanonical"] == (_tokenizer().encode(row["completion"]) != body)
  assert any("<u>" in text for text in texts) == bool(allowed) and any(row["noncanonical"] for row in found)


def test_finds_of_an_older_checkpoint_that_are_masked_now_are_dropped():
  config = base.get_config()
  forbidden = special_tokens.forbidden_token_ids(_tokenizer())
  model = dataclasses.replace(toy.MODEL, forbidden=forbidden)
  plan = build.plan(config, Policy(model, None, None, (), None))
  replay = groups.Replay(plan, min_reward=1.0, key="", capacity=100, rows=[])
  replay.buffer.from_json([["key", [4, 1], 1.0], ["key", [4, 2, 1], 1.0]])
  replay.buffer.add("key", np.array([3, 1]), 1.0)
  assert replay.buffer.draw("key", 3, np.random.default_rng(0)) == [((4, 1), 1.0)]
  assert jax.tree.leaves(replay.buffer.draw("key", 2, np.random.default_rng(0))) == [4, 1, 1.0]
