"""However samples share slots, loops, caches and batches, they are the same samples."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax import sharding
from qempo_jax.models import parameters
from qempo_jax.models.kv_cache import Stored
from qempo_jax.sampling import sampler
from qempo_jax.types import PromptBatch
from tests.sampling.sampler_test import CONFIG
from tests.sampling.sampler_test import _padded
from tests.sampling.sampler_test import _score

ONE_BLOCK = dataclasses.replace(CONFIG, num_layers=1)
PROMPTS = ([5, 6, 7], [8, 9, 10, 11, 12], [13, 14], [15, 16, 17, 18])
# Ids below 40 of 300 end a response: about eight tokens, of at most 24.
SETTINGS = {"group_size": 6, "max_length": 24, "temperature": 0.8, "stop_tokens": tuple(range(40))}


@pytest.fixture(scope="module")
def params():
  return parameters.init(jax.random.key(0), ONE_BLOCK, stddev=0.3)


def _sample(params, prompts=PROMPTS, config=ONE_BLOCK, **settings):
  batch = _padded("left", prompts)
  return jax.device_get(sampler.sample_groups(params, config, batch, jax.random.key(1), **SETTINGS | settings))


@pytest.fixture(scope="module")
def plain(params):
  """Every sample in a slot of its own."""
  found = _sample(params)
  lengths = found.mask.sum(-1)
  assert lengths.max() >= 10 * lengths.min()
  return found


def _assert_same(found, expected):
  np.testing.assert_array_equal(found.tokens, expected.tokens)
  np.testing.assert_array_equal(found.mask, expected.mask)
  np.testing.assert_array_equal(found.truncated, expected.truncated)
  np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-5)
  np.testing.assert_allclose(found.entropies, expected.entropies, atol=1e-5)


@pytest.mark.parametrize(
  "settings",
  [
    pytest.param({"slots": 5}, marks=pytest.mark.slow),
    pytest.param({"halvings": 3}, marks=pytest.mark.slow),
    pytest.param({"first_ring": 5}, marks=pytest.mark.slow),
    {"slots": 7, "halvings": 1, "first_ring": 12},
    pytest.param({"slots": 7, "halvings": 2, "first_ring": 3}, marks=pytest.mark.slow),
  ],
  ids=str,
)
def test_slots_halvings_and_rings_change_no_sample(params, plain, settings):
  found = _sample(params, **settings)
  _assert_same(found, plain)
  assert found.mask.sum() <= found.slot_steps
  if "slots" in settings or "halvings" in settings:
    assert found.slot_steps < plain.slot_steps
  else:
    assert found.slot_steps == plain.slot_steps


def test_rings_start_at_half_of_the_longest_response():
  sizes = [sampler.ring_sizes(longest) for longest in (6, 40, 64, 600, 2048)]
  assert sizes == [[6], [32, 40], [32, 64], [256, 512, 600], [256, 512, 1024, 2048]]
  assert sampler.ring_sizes(8, 3) == [3, 6, 8]


@pytest.mark.slow
def test_one_slot_is_never_idle(params, plain):
  found = _sample(params, slots=1)
  assert found.slot_steps == found.mask.sum() == plain.mask.sum() and found.utilisation == 1
  assert plain.slot_steps == 24 * plain.mask.sum(-1).max()


def test_batches_change_no_sample(params, plain):
  parts = [
    _sample(params, PROMPTS[:2], prompt_ids=jnp.arange(2), slots=2),
    _sample(params, PROMPTS[2:], prompt_ids=jnp.arange(2, 4), slots=2),
  ]
  joined = jax.tree.map(lambda *leaves: np.concatenate(leaves) if leaves[0].ndim else leaves[0], *parts)
  _assert_same(joined, plain)


def test_a_policy_that_stops_at_once(params):
  at_once = _sample(params, stop_tokens=tuple(range(300)), slots=5)
  assert (at_once.mask.sum(-1) == 1).all() and at_once.slot_steps == 25


@pytest.mark.slow
def test_a_policy_that_never_stops(params):
  never = _sample(params, stop_tokens=(), slots=5)
  assert never.mask.all() and never.truncated.all() and never.slot_steps == 5 * 5 * 24


@pytest.mark.slow
def test_tenfold_lengths_leave_few_slots_idle(params):
  """Counts, not times: 128 samples in 16 slots."""
  many = [[5 + row, 9] for row in range(8)]
  plain, slotted = (_sample(params, many, group_size=16, **settings) for settings in ({}, {"slots": 16, "halvings": 2}))
  lengths = slotted.mask.sum(-1)
  assert np.quantile(lengths, 0.95) >= 10 * np.quantile(lengths, 0.05)
  assert slotted.utilisation >= 0.85 and plain.utilisation < 0.5


@pytest.mark.slow
def test_a_bfloat16_cache_stays_near_what_scoring_says(params):
  settings = {"group_size": 16, "max_length": 7, "stop_tokens": (2, 3, 4, 5, 6, 7)}
  found = _sample(params, PROMPTS[:3], dataclasses.replace(ONE_BLOCK, kv_cache="bfloat16"), **settings)
  stats = _score(params, PROMPTS[:3], found, ONE_BLOCK)
  difference = np.abs(np.asarray(stats.log_prob) - found.log_probs)[found.mask]
  assert 1e-5 < difference.max() < 0.05
  assert np.abs(np.asarray(stats.entropy) - found.entropies)[found.mask].max() < 0.05


def test_int8_is_the_nearest_of_its_steps_and_its_products_are_those_of_the_rounded_numbers():
  x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5, 8)) * jnp.asarray([1e-3, 1.0, 50.0, 0.0, 1.0])[:, None]
  stored = Stored.pack(x, jnp.int8)
  steps = np.max(np.abs(x), axis=-1, keepdims=True) / 127
  rounded = np.asarray(stored.numbers, np.float32) * np.asarray(stored.scales)[..., None]
  assert stored.numbers.dtype == jnp.int8 and (np.abs(rounded - x) <= 0.5001 * steps).all()
  q = jax.random.normal(jax.random.key(1), (2, 3, 4, 2, 8))
  scores = stored.scores("xjgrk,xjgtk->xjgrt", q)
  np.testing.assert_allclose(scores, np.einsum("xjgrk,xjgtk->xjgrt", q, rounded), rtol=1e-5, atol=1e-4)
  mixed = stored.mix("xjgrt,xjgtk->xjgrk", scores)
  np.testing.assert_allclose(mixed, np.einsum("xjgrt,xjgtk->xjgrk", scores, rounded), rtol=1e-4, atol=1e-2)
  prompt = Stored(stored.numbers[:, :, 0], stored.scales[:, :, 0])
  expected = np.einsum("xjgrk,xjlk->xjgrl", q, rounded[:, :, 0])
  np.testing.assert_allclose(prompt.scores("xjgrk,xjlk->xjgrl", q), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("shape", "settings"),
  [
    ((2, 2, 2), {"slots": 12, "halvings": 1}),
    pytest.param((2, 2, 2), {}, marks=pytest.mark.slow),
    pytest.param((8, 1, 1), {"slots": 16, "halvings": 1}, marks=pytest.mark.slow),
    pytest.param((1, 2, 4), {"slots": 16, "halvings": 1}, marks=pytest.mark.slow),
  ],
  ids=str,
)
def test_sharded_equals_a_single_device(params, plain, shape, settings):
  many, expected = PROMPTS, plain
  if shape[0] == 8:
    many = [[5 + row, 9] for row in range(8)]
    expected = _sample(params, many, **settings)
  mesh = sharding.make_mesh(shape)
  placed = jax.device_put(params, sharding.tree_shardings(params, mesh, sharding.PARAM_RULES))
  batch = sharding.place(jax.device_get(_padded("left", many)), sharding.batch_sharding(mesh))
  run = sharding.on_mesh(sampler.sample_groups, mesh)
  found = jax.device_get(
    run(placed, ONE_BLOCK, PromptBatch(batch.tokens, batch.mask), jax.random.key(1), **SETTINGS | settings)
  )
  _assert_same(found, expected)
  assert found.mask.sum() <= found.slot_steps
