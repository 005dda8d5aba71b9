"""Gated delta nets in packed rows, trees, reward models and on meshes; their logits are in `families_test`."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax import packing
from qempo_jax import scoring
from qempo_jax import sharding
from qempo_jax.errors import InputError
from qempo_jax.models import conversion
from qempo_jax.models import parameters
from qempo_jax.models import reward_head
from qempo_jax.models import shared_prompt
from qempo_jax.models import transformer
from qempo_jax.sampling import sampler
from qempo_jax.train import reward_step
from qempo_jax.types import PromptBatch

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "families"
CONFIG, PARAMS = conversion.load(GOLDEN / "qwen3_5")
PARAMS = jax.tree.map(jnp.asarray, PARAMS)
TOLERANCE = 5e-4  # of numbers around 1; the norm after the rule divides small outputs, and their errors, by their size


def _tokens(rng, *lengths):
  return [rng.integers(3, CONFIG.vocab_size, length).tolist() for length in lengths]


def _packed(prompts_per_row=2):
  rng = np.random.default_rng(0)
  responses = [_tokens(rng, 4, 9), _tokens(rng, 1, 6), _tokens(rng, 11, 2), [_tokens(rng, 5)[0], []]]
  return packing.pack_groups(_tokens(rng, 7, 3, 2, 8), responses, bucket=8, prompts_per_row=prompts_per_row)


_forward = jax.jit(transformer.forward, static_argnums=1)


def _alone(texts):
  """Hidden states of each text's tokens, in rows of their own."""
  valid = np.arange(max(map(len, texts))) < np.array([[len(text)] for text in texts])
  tokens = np.zeros(valid.shape, int)
  tokens[valid] = np.concatenate(texts)
  positions = np.cumsum(valid, axis=1) - 1
  hidden = _forward(PARAMS, CONFIG, tokens, positions, transformer.causal_mask(positions, valid))
  return [row[: len(text)] for row, text in zip(hidden, texts)]


def test_rows_of_several_prompts_equal_their_texts_alone():
  """Both ways through packed rows: sequence by sequence, and token by token under the mask."""
  packed = _packed()
  by_sequence = jax.jit(transformer.forward_groups, static_argnums=1)(PARAMS, CONFIG, packed)[0]
  mask = shared_prompt.mask_of_rows(packed.positions, packed.segments, packed.layout.responses)
  by_token = _forward(PARAMS, CONFIG, packed.tokens, packed.positions, mask)
  size = packed.layout.responses + 1
  texts = [(row, segment) for row in range(2) for segment in sorted(set(np.unique(packed.segments[row])) - {-1})]
  places = [(row, np.isin(packed.segments[row], [s - s % size, s])) for row, s in texts]
  alone = _alone([packed.tokens[place].tolist() for place in places])
  for place, expected in zip(places, alone, strict=True):
    np.testing.assert_allclose(by_sequence[place], expected, atol=TOLERANCE)
    np.testing.assert_allclose(by_token[place], expected, atol=TOLERANCE)


@pytest.mark.slow
def test_gradients_of_both_ways_agree():
  packed = _packed()
  mask = shared_prompt.mask_of_rows(packed.positions, packed.segments, packed.layout.responses)
  weight = (packed.segments >= 0)[..., None]
  by_sequence = lambda params: transformer.forward_groups(params, CONFIG, packed)[0]
  by_token = lambda params: transformer.forward(params, CONFIG, packed.tokens, packed.positions, mask)
  loss = lambda run: jax.jit(jax.grad(lambda params: jnp.sum(jnp.sin(run(params)) * weight)))(PARAMS)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())
  jax.tree.map(close, loss(by_sequence), loss(by_token))


def test_a_tree_equals_its_branches():
  trunk, left, right = _tokens(np.random.default_rng(1), 5, 4, 3)
  order = np.argsort(np.r_[0:5, 5:9, 5.5:8], kind="stable")  # the branches take turns
  tokens = np.array(trunk + left + right)[order]
  branch = np.array([0] * 5 + [1] * 4 + [2] * 3)[order]
  positions = np.array([*range(5), *range(5, 9), *range(5, 8)])[order]
  related = (branch[None] == branch[:, None]) | (branch[None] == 0)
  mask = related & (positions[None] <= positions[:, None])
  hidden = _forward(PARAMS, CONFIG, tokens[None], positions[None], mask[None])[0]
  for index, expected in enumerate(_alone([trunk + left, trunk + right]), start=1):
    np.testing.assert_allclose(hidden[np.isin(branch, [0, index])], expected, atol=TOLERANCE)


def test_pairs_of_a_reward_model_score_as_their_texts_alone():
  config, params = reward_head.from_decoder(CONFIG, PARAMS)
  params["score"] = jax.random.normal(jax.random.key(0), params["score"].shape)
  prompt, chosen, rejected = _tokens(np.random.default_rng(2), 6, 3, 5)
  tokens, segments = np.array([prompt + chosen + rejected]), np.array([[0] * 6 + [1] * 3 + [2] * 5])
  positions = np.array([[*range(9), *range(6, 11)]])
  one = jnp.ones(1)
  batch = reward_step.RewardBatch(*map(jnp.asarray, (tokens, positions, segments, [[8, 13]])), one, one)
  texts = np.array([prompt + chosen + [0, 0], prompt + rejected])
  valid = np.arange(11) < np.array([[9], [11]])
  expected = jax.jit(reward_head.score_rows, static_argnums=1)(params, config, texts, valid, np.array([8, 10]))
  for trainable in ("all", "last:3"):
    trained, frozen = reward_head.split(params, config, trainable)
    jax.tree.map(np.testing.assert_array_equal, reward_head.join(trained, frozen), params)
    scores = jax.jit(reward_step.pair_scores, static_argnames="config")(trained, frozen, batch, config=config)
    np.testing.assert_allclose(scores, expected.T, atol=1e-4)


@pytest.mark.slow
def test_a_decoder_of_delta_nets_alone_is_sampled_as_it_scores():
  config = dataclasses.replace(CONFIG, num_layers=1, delta_blocks=(True,))
  params = parameters.init(jax.random.key(0), config, stddev=0.3)
  prompts, settings = [[5, 6, 7], [8]], {"group_size": 2, "max_length": 5, "temperature": 0.8}
  batch = PromptBatch(np.array([[5, 6, 7], [0, 0, 8]]), np.array([[1, 1, 1], [0, 0, 1]], bool))
  drawn = sampler.sample_groups(params, config, batch, jax.random.key(1), stop_tokens=(2,), slots=3, **settings)
  drawn = jax.device_get(drawn)
  responses = [[tokens[mask] for tokens, mask in zip(*group)] for group in zip(drawn.tokens, drawn.mask)]
  packed = packing.pack_groups(prompts, responses, bucket=8)
  stats = scoring.score_groups(params, config, packed, chunk_size=8, **settings)
  np.testing.assert_allclose(stats.log_prob, drawn.log_probs, atol=1e-4)


def test_what_cannot_be_computed_is_refused():
  packed = _packed()
  mesh = sharding.make_mesh((1, 1, 1, 2), devices=jax.devices()[:2])
  with pytest.raises(InputError, match="read a row in order; give the mesh's sequence axis one device"):
    jax.eval_shape(sharding.on_mesh(lambda params: transformer.forward_groups(params, CONFIG, packed)[0], mesh), PARAMS)
  gemma = dataclasses.replace(CONFIG, delta_net=None, delta_blocks=(), block_embedding=(64, 4))
  with pytest.raises(InputError, match="read tokens or other blocks' keys too; give a reward model of another family"):
    transformer.run_blocks({}, gemma, None, None, None, remat=False)
