"""The pure training step of a reward model: Bradley-Terry on pairs packed in one row, each prompt computed once."""

from collections.abc import Sequence
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from qempo_jax.losses import reward_model
from qempo_jax.models import reward_head
from qempo_jax.models import shared_prompt
from qempo_jax.models.config import ModelConfig
from qempo_jax.train.state import TrainState
from qempo_jax.train.step import policy_step

_RESPONSES = 2  # of each prompt


@struct.dataclass
class RewardBatch:
  """Pairs, one a row: the prompt, then both responses, each seeing the prompt and itself alone.

  Attributes:
    tokens: [P, R] token ids.
    positions: [P, R] rotary positions; each response continues its prompt.
    segments: [P, R], 0 on the prompt, 1 on the chosen response, 2 on the rejected one, -1 on padding.
    last: [P, 2] place of the last token of the chosen and of the rejected response.
    margin: [P] how clearly the first was preferred, reward units.
    weight: [P] 1 for a pair, 0 for a row that only fills the batch.
    hidden: [P, R, D] the residual stream after the frozen blocks where it is already known, else None.
  """

  tokens: jax.Array
  positions: jax.Array
  segments: jax.Array
  last: jax.Array
  margin: jax.Array
  weight: jax.Array
  hidden: jax.Array | None = None


def frozen_hidden(frozen: dict[str, Any], batch: RewardBatch, *, config: ModelConfig):
  """The residual stream after the frozen blocks, [P, R, D]; it never changes while the others are trained."""
  x = reward_head.embed(frozen, config, batch.tokens)
  mask = shared_prompt.mask_of_rows(batch.positions, batch.segments, _RESPONSES)
  if not reward_head.frozen_blocks(frozen):
    return x
  return reward_head.run_blocks(frozen["layers"], config, x, batch.positions, mask, first=0, remat=False)


def pair_scores(trained: dict[str, Any], frozen: dict[str, Any], batch: RewardBatch, *, config: ModelConfig):
  """Scores of the chosen and the rejected responses, [P, 2], reward units.

  Args:
    trained: the trained part of the parameters, see `reward_head.split`.
    frozen: the other part.
    batch: pairs.
    config: the decoder's shape.
  """
  x = batch.hidden
  if x is None:
    x = jax.lax.stop_gradient(frozen_hidden(frozen, batch, config=config)) if frozen else None
  if x is None:
    x = reward_head.embed(trained, config, batch.tokens)
  if "layers" in trained:
    mask = shared_prompt.mask_of_rows(batch.positions, batch.segments, _RESPONSES)
    first = reward_head.frozen_blocks(frozen)
    x = reward_head.run_blocks(trained["layers"], config, x, batch.positions, mask, first=first, remat=True)
  norm_and_head = {name: leaf for name, leaf in (frozen | trained).items() if name in ("final_norm", "score")}
  return reward_head.read_scores(norm_and_head, config, x, batch.last)


def reward_step(
  state: TrainState,
  frozen: dict[str, Any],
  batch: RewardBatch,
  *,
  config: ModelConfig,
  optimizer: optax.GradientTransformation,
  centring_weight: float,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update of the trained part on pairs: the mean over pairs of `losses.reward_model.bradley_terry_loss`.

  Nothing moves where the loss or its gradient is not finite.

  Args:
    state: the run; its params are the trained part.
    frozen: the part that stays.
    batch: pairs.
    config: the decoder's shape.
    optimizer: of the trained part.
    centring_weight: pull of each pair's mean score toward 0, per reward unit squared.

  Returns:
    (the next state, metrics: scalars by name, means over the pairs as `pair_metrics` names them).
  """
  count = jnp.maximum(jnp.sum(batch.weight), 1.0)

  def loss(scores, rows):
    one = lambda pair, margin: reward_model.bradley_terry_loss(
      pair[0], pair[1], margin, centring_weight=centring_weight
    )
    return rows.weight * jax.vmap(one)(scores, rows.margin) / count

  score = lambda trained, rows: pair_scores(trained, frozen, rows, config=config)
  next_state, scores, metrics = policy_step(state, batch, score=score, loss=loss, optimizer=optimizer)
  return next_state, metrics | pair_metrics(scores, batch.weight)


def pair_metrics(scores, weight) -> dict[str, jax.Array]:
  """Weighted means over pairs of scores [P, 2].

  `accuracy` (share of positive margins, half for a tie), `margin` and `score` (reward units; the mean of both).
  """
  margins = scores[:, 0] - scores[:, 1]
  right = jnp.where(margins == 0, 0.5, margins > 0)
  mean = lambda values: jnp.sum(weight * values) / jnp.maximum(jnp.sum(weight), 1.0)
  return {"accuracy": mean(right), "margin": mean(margins), "score": mean(jnp.mean(scores, axis=1))}


def pack_pairs(
  prompts: Sequence[Sequence[int]],
  responses: Sequence[Sequence[Sequence[int]]],
  margins: Sequence[float],
  *,
  bucket: int,
  rows: int,
) -> RewardBatch:
  """Packs pairs, one a row, and fills up with rows of weight 0; NumPy, on the host.

  Args:
    prompts: token ids, none empty.
    responses: of each, (chosen, rejected) with their ending tokens, none empty.
    margins: of the loss, reward units.
    bucket: row lengths are rounded up to a multiple of it, so that few shapes are ever compiled.
    rows: of the batch, at least as many as there are pairs.

  Returns:
    RewardBatch of NumPy arrays, without hidden states.
  """
  lengths = [len(prompt) + sum(map(len, pair)) for prompt, pair in zip(prompts, responses)]
  shape = (rows, -(-max(lengths) // bucket) * bucket)
  tokens, positions, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
  last, margin, weight = np.zeros((rows, 2), np.int32), np.zeros(rows, np.float32), np.zeros(rows, np.float32)
  segments[len(prompts) :, 0] = 0  # a row that fills sees its own first token, so that nothing in it is NaN
  for row, (prompt, pair) in enumerate(zip(prompts, responses)):
    at = 0
    for index, ids in enumerate((prompt, *pair)):
      stop = at + len(ids)
      tokens[row, at:stop], segments[row, at:stop] = ids, index
      positions[row, at:stop] = np.arange(len(ids)) + (len(prompt) if index else 0)
      if index:
        last[row, index - 1] = stop - 1
      at = stop
    margin[row], weight[row] = margins[row], 1
  return RewardBatch(tokens, positions, segments, last, margin, weight)
