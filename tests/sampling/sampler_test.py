"""The sampler's statistics of its tokens equal those of the training forward pass."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax import packing
from qempo_jax.models import parameters
from qempo_jax.sampling import sampler
from qempo_jax.types import PromptBatch
from tests import scored
from tests.loops import toy

CONFIG = dataclasses.replace(
  toy.MODEL,
  vocab_size=300,
  intermediate_size=48,
  num_layers=3,
  rope_theta=1000.0,
  tie_embeddings=True,
  logit_softcap=4.0,
)
PROMPTS = ([5, 6, 7], [8, 9, 10, 11, 12], [13, 14])
SETTINGS = {"group_size": 16, "max_length": 7, "temperature": 0.8, "stop_tokens": (2, 3, 4, 5, 6, 7)}


@pytest.fixture(scope="module")
def params():
  return parameters.init(jax.random.key(0), CONFIG, stddev=0.3)


def _padded(side, prompts=PROMPTS, width=8):
  tokens, mask = np.full((len(prompts), width), 99, np.int32), np.zeros((len(prompts), width), bool)
  for row, prompt in enumerate(prompts):
    place = slice(0, len(prompt)) if side == "right" else slice(width - len(prompt), None)
    tokens[row, place], mask[row, place] = prompt, True
  return PromptBatch(jnp.asarray(tokens), jnp.asarray(mask))


def _score(params, prompts, rollout, config=CONFIG, **more):
  responses = [[t[m] for t, m in zip(*group)] for group in zip(np.asarray(rollout.tokens), np.asarray(rollout.mask))]
  packed = packing.pack_groups(prompts, responses, bucket=16)
  return scored.score_groups(
    params,
    config,
    packed,
    group_size=SETTINGS["group_size"],
    max_length=SETTINGS["max_length"],
    temperature=SETTINGS["temperature"],
    chunk_size=50,
    **more,
  )


@pytest.fixture(scope="module")
def rollout(params):
  return jax.device_get(sampler.sample_groups(params, CONFIG, _padded("left"), jax.random.key(1), **SETTINGS))


def test_scoring_gives_the_samplers_log_probs(params, rollout):
  stats = _score(params, PROMPTS, rollout)
  assert 0 < float(rollout.truncated.mean()) < 1  # both endings occur
  np.testing.assert_allclose(stats.log_prob, rollout.log_probs, atol=1e-4)
  np.testing.assert_allclose(stats.entropy, rollout.entropies, atol=1e-4)


def test_padding_changes_nothing(params, rollout):
  other = sampler.sample_groups(params, CONFIG, _padded("right"), jax.random.key(1), **SETTINGS)
  np.testing.assert_array_equal(rollout.tokens, other.tokens)
  np.testing.assert_allclose(rollout.log_probs, other.log_probs, atol=1e-4)
  np.testing.assert_allclose(rollout.entropies, other.entropies, atol=1e-4)


def test_a_response_ends_with_its_first_stop_token_which_counts(rollout):
  stops = np.isin(rollout.tokens, SETTINGS["stop_tokens"]) & np.asarray(rollout.mask)
  lengths = np.asarray(rollout.mask).sum(-1)
  assert (stops.sum(-1) == ~np.asarray(rollout.truncated)).all()
  for at in np.ndindex(lengths.shape):
    assert np.asarray(rollout.mask)[at][: lengths[at]].all()
    assert not stops[at][: lengths[at] - 1].any()


def test_every_sample_has_its_own_random_numbers(params):
  rollout = sampler.sample_groups(params, CONFIG, _padded("left", PROMPTS[:1] * 3), jax.random.key(1), **SETTINGS)
  tokens = np.asarray(rollout.tokens).reshape(-1, SETTINGS["max_length"])
  assert len({tuple(row) for row in tokens}) > len(tokens) // 2
