"""Packed groups: every response sees its prompt and itself, nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax import packing
from qempo_jax.errors import InputError
from qempo_jax.models import parameters
from qempo_jax.models import transformer
from qempo_jax.models.config import ModelConfig
from qempo_jax.types import RowLayout
from tests import scored

CONFIG = ModelConfig(50, 16, 24, 2, 4, 2, 4, 100.0, 1e-5, False)
FORWARD = jax.jit(transformer.forward, static_argnums=1)
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8]]
RESPONSES = [[[9, 10], [], [11, 12, 13]], [[14], [15, 16, 17, 18], [9, 10]]]


def _score(params, prompts, responses, bucket=8, **settings):
  packed = packing.pack_groups(prompts, responses, bucket=bucket, **settings)
  return scored.score_groups(
    params, CONFIG, packed, group_size=len(responses[0]), max_length=4, temperature=1.0, chunk_size=7
  )


def _alone(params, tokens):
  """Next-token log-probs of one sequence, whose empty places up to ten nothing before them sees."""
  tokens = jnp.asarray([tokens + [0] * (10 - len(tokens))])
  positions = jnp.arange(10)[None]
  mask = transformer.causal_mask(positions, jnp.ones_like(tokens, bool))
  hidden = FORWARD(params, CONFIG, tokens, positions, mask)
  return np.asarray(jax.nn.log_softmax(hidden[0] @ params["unembedding"].T))


def test_a_row_by_hand():
  packed = packing.pack_groups(PROMPTS[:1], RESPONSES[:1], bucket=4)
  np.testing.assert_array_equal(packed.tokens[0], [1, 2, 3, 0, 9, 11, 12, 0])
  np.testing.assert_array_equal(packed.positions[0], [0, 1, 2, 0, 3, 3, 4, 0])
  np.testing.assert_array_equal(packed.segments[0], [0, 0, 0, -1, 1, 3, 3, -1])
  np.testing.assert_array_equal(packed.source[0], [2, 4, 2, 5, 6, 0, 0])
  np.testing.assert_array_equal(packed.target[0], [9, 10, 11, 12, 13, 0, 0])
  np.testing.assert_array_equal(packed.sample[0], [0, 0, 2, 2, 2, 3, 3])
  np.testing.assert_array_equal(packed.time[0], [0, 1, 0, 1, 2, 0, 0])
  assert packed.layout == RowLayout(prompt=4, chunk=4, reach=4, prompts=1, responses=3)


def test_a_row_of_two_prompts_by_hand():
  packed = packing.pack_groups(PROMPTS, RESPONSES, bucket=4, prompts_per_row=2)
  np.testing.assert_array_equal(packed.tokens, [[1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 15, 16, 17, 9, 0]])
  np.testing.assert_array_equal(packed.positions, [[0, 1, 2, 0, 1, 2, 3, 4, 3, 3, 4, 5, 6, 7, 5, 0]])
  np.testing.assert_array_equal(packed.segments, [[0, 0, 0, 4, 4, 4, 4, 4, 1, 3, 3, 6, 6, 6, 7, -1]])
  np.testing.assert_array_equal(packed.source[0, :12], [2, 8, 2, 9, 10, 7, 7, 11, 12, 13, 7, 14])
  np.testing.assert_array_equal(packed.target[0, :12], [9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 9, 10])
  np.testing.assert_array_equal(packed.sample, [[0, 0, 2, 2, 2, 3, 4, 4, 4, 4, 5, 5, 6, 6]])
  assert packed.layout == RowLayout(prompt=8, chunk=4, reach=4, prompts=2, responses=3)


@pytest.mark.parametrize(
  ("longest", "reach", "chunk"),
  [(1, 8, 8), (9, 8, 8), (10, 16, 8), (18, 24, 8), (66, 72, 8), (129, 128, 16), (130, 144, 16), (200, 216, 24)],
)
def test_a_response_lies_within_the_reach(longest, reach, chunk):
  packed = packing.pack_groups([[1] * 9], [[[2] * longest, [3]]], bucket=8)
  assert packed.layout == RowLayout(prompt=16, chunk=chunk, reach=reach, prompts=1, responses=2)
  assert (packed.segments[0] > 0).sum() == longest - 1 and (packed.sample[0] < 2).sum() == longest + 1


def test_widths_are_few_and_little_of_them_is_padding():
  values = np.arange(1, 2**14)
  widths = np.array([packing.bucketed(int(value), 8) for value in values])
  assert (widths >= values).all() and (widths % 8 == 0).all() and (np.diff(widths) >= 0).all()
  assert len(set(widths)) <= 16 + np.log(2**14 / (16 * 8)) / np.log(1.11)
  long = values > 128
  assert (widths[long] < 1.125 * values[long] + 1).all()


@pytest.mark.parametrize("prompts_per_row", [0, 3])
def test_rows_that_the_prompts_do_not_fill_are_refused(prompts_per_row):
  with pytest.raises(InputError, match=f"prompts_per_row={prompts_per_row} does not divide the 2 prompts"):
    packing.pack_groups(PROMPTS, RESPONSES, bucket=4, prompts_per_row=prompts_per_row)


def test_single_tokens_and_no_tokens_have_room():
  packed = packing.pack_groups([[1, 2]], [[[3]] * 9 + [[]]], bucket=4)
  assert (packed.segments > 0).sum() == 0
  np.testing.assert_array_equal(packed.sample[0, :9], range(9))
  assert packed.tokens.shape == (1, 8) and packed.source.shape == (1, 14)


@pytest.mark.parametrize(("bucket", "prompts_per_row"), [(8, 1), (64, 2)])
def test_packed_scores_equal_those_of_each_sequence_alone(bucket, prompts_per_row):
  params = parameters.init(jax.random.key(0), CONFIG, stddev=0.3)
  stats = _score(params, PROMPTS, RESPONSES, bucket=bucket, prompts_per_row=prompts_per_row)
  for row, (prompt, group) in enumerate(zip(PROMPTS, RESPONSES)):
    for index, response in enumerate(group):
      log_probs = _alone(params, prompt + response)
      expected = [float(log_probs[len(prompt) - 1 + t, token]) for t, token in enumerate(response)]
      np.testing.assert_allclose(stats.log_prob[row, index, : len(response)], expected, atol=1e-5)
      np.testing.assert_array_equal(stats.log_prob[row, index, len(response) :], 0)
      np.testing.assert_array_equal(stats.entropy[row, index, len(response) :], 0)


@pytest.mark.slow  # the gradient of packed rows is that of sequences alone in `models/shared_prompt_test`
@pytest.mark.parametrize(("bucket", "prompts_per_row"), [(64, 1), (4, 2)])
def test_buckets_and_rows_change_nothing(bucket, prompts_per_row):
  params = parameters.init(jax.random.key(0), CONFIG, stddev=0.3)
  loss = lambda params, *settings: jnp.sum(jnp.sin(_score(params, PROMPTS, RESPONSES, **dict(settings)).log_prob))
  small = jax.grad(loss)(params, ("bucket", 4))
  large = jax.grad(loss)(params, ("bucket", bucket), ("prompts_per_row", prompts_per_row))
  scale = lambda a: np.max(np.abs(a))  # rounding is relative to what is summed
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a / scale(b), b / scale(b), rtol=0, atol=5e-6), small, large)
