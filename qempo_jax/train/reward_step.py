"""The training step of a reward model: Bradley-Terry on packed pairs, each prompt computed once."""

from collections.abc import Sequence
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from qempo_jax.losses import reward_model
from qempo_jax.models import delta_net
from qempo_jax.models import reward_head
from qempo_jax.models import shared_prompt
from qempo_jax.models import transformer
from qempo_jax.models.config import ModelConfig
from qempo_jax.train.state import TrainState
from qempo_jax.train.step import policy_step
from qempo_jax.types import RowLayout

_RESPONSES = 2  # Responses a prompt.


@struct.dataclass
class RewardBatch:
  """Pairs, one a row: the prompt, then both responses, each attending to the prompt and itself alone.

  Attributes:
    tokens: [P, R] token ids.
    positions: [P, R] rotary positions; each response continues its prompt.
    segments: [P, R], 0 on the prompt, 1 on the chosen response, 2 on the rejected one, -1 on padding.
    last: [P, 2] column of the last token of the chosen and of the rejected response.
    margin: [P] margin of the loss, reward units.
    weight: [P] 1 for a pair, 0 for padding rows.
    hidden: [P, R, D] cached activations after the frozen blocks; None: not cached.
  """

  tokens: jax.Array
  positions: jax.Array
  segments: jax.Array
  last: jax.Array
  margin: jax.Array
  weight: jax.Array
  hidden: jax.Array | None = None


def frozen_hidden(frozen: dict[str, Any], batch: RewardBatch, *, config: ModelConfig):
  """Activations after the frozen blocks, [P, R, D], constant in training."""
  x = transformer.embed(frozen, config, batch.tokens)
  if not reward_head.frozen_blocks(frozen):
    return x
  return transformer.run_blocks(frozen["layers"], config, x, batch.positions, _mixers(batch, config), remat=False)


def pair_scores(trainable: dict[str, Any], frozen: dict[str, Any], batch: RewardBatch, *, config: ModelConfig):
  """Scores of the chosen and the rejected responses, [P, 2], reward units.

  Args:
    trainable: the trainable parameters, see `reward_head.split`.
    frozen: the other parameters.
    batch: pairs.
    config: the decoder's config.
  """
  x = batch.hidden
  if x is None:
    x = jax.lax.stop_gradient(frozen_hidden(frozen, batch, config=config)) if frozen else None
  if x is None:
    x = transformer.embed(trainable, config, batch.tokens)
  if "layers" in trainable:
    settings = {"first": reward_head.frozen_blocks(frozen), "remat": True}
    mixers = _mixers(batch, config)
    x = transformer.run_blocks(trainable["layers"], config, x, batch.positions, mixers, **settings)
  norm_and_head = {name: leaf for name, leaf in (frozen | trainable).items() if name in ("final_norm", "score")}
  return reward_head.read_scores(norm_and_head, config, x, batch.last)


def _mixers(batch: RewardBatch, config: ModelConfig):
  mask = shared_prompt.mask_of_rows(batch.positions, batch.segments, _RESPONSES)
  columns = batch.tokens.shape[1]
  layout = RowLayout(columns, columns, columns, 1, _RESPONSES)
  recur = delta_net.over_groups(batch.positions, batch.segments, layout, config)
  return transformer.Mixers(transformer.masked(config, batch.positions, mask), recur)


def reward_step(
  state: TrainState,
  frozen: dict[str, Any],
  batch: RewardBatch,
  *,
  config: ModelConfig,
  optimizer: optax.GradientTransformation,
  centring_weight: float,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update of the trainable parameters: the mean over pairs of `losses.reward_model.bradley_terry_loss`.

  Parameters are kept if the loss or its gradient is not finite.

  Args:
    state: the train state; its params are the trainable parameters.
    frozen: the frozen parameters.
    batch: pairs.
    config: the decoder's config.
    optimizer: optimizer of the trainable parameters.
    centring_weight: weight of (r_chosen + r_rejected)^2, per reward unit squared.

  Returns:
    (the next state, metrics: scalars by name, see `pair_metrics`).
  """
  count = jnp.maximum(jnp.sum(batch.weight), 1.0)

  def loss(scores, rows):
    one = lambda pair, margin: reward_model.bradley_terry_loss(
      pair[0], pair[1], margin, centring_weight=centring_weight
    )
    return rows.weight * jax.vmap(one)(scores, rows.margin) / count

  score = lambda trainable, rows: pair_scores(trainable, frozen, rows, config=config)
  next_state, scores, metrics = policy_step(state, batch, score=score, loss=loss, optimizer=optimizer)
  return next_state, metrics | pair_metrics(scores, batch.weight)


def pair_metrics(scores, weight) -> dict[str, jax.Array]:
  """Weighted means over pairs of scores [P, 2].

  `accuracy` (share of positive margins, half for a tie), `margin` and `score` (reward units; the mean of both).
  """
  margins = scores[:, 0] - scores[:, 1]
  correct = jnp.where(margins == 0, 0.5, margins > 0)
  mean = lambda values: jnp.sum(weight * values) / jnp.maximum(jnp.sum(weight), 1.0)
  return {"accuracy": mean(correct), "margin": mean(margins), "score": mean(jnp.mean(scores, axis=1))}


def pack_pairs(
  prompts: Sequence[Sequence[int]],
  responses: Sequence[Sequence[Sequence[int]]],
  margins: Sequence[float],
  *,
  bucket: int,
  rows: int,
) -> RewardBatch:
  """Packs pairs, one a row, and pads the batch with rows of weight 0; NumPy, on the host.

  `packing.pack_groups` leaves out the last token of every response, where a reward model reads its score.

  Args:
    prompts: token ids, none empty.
    responses: (chosen, rejected) token ids of each prompt, EOS included, none empty.
    margins: margins of the loss, reward units.
    bucket: row lengths are padded to a multiple of it, so that few shapes compile.
    rows: rows of the batch, at least the number of pairs.

  Returns:
    RewardBatch of NumPy arrays, without cached activations.
  """
  lengths = [len(prompt) + sum(map(len, pair)) for prompt, pair in zip(prompts, responses)]
  shape = (rows, -(-max(lengths) // bucket) * bucket)
  tokens, positions, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
  last, margin, weight = np.zeros((rows, 2), np.int32), np.zeros(rows, np.float32), np.zeros(rows, np.float32)
  segments[len(prompts) :, 0] = 0  # A padding row attends to its own first token, so that nothing in it is NaN.
  for row, (prompt, pair) in enumerate(zip(prompts, responses)):
    stop = 0
    for index, ids in enumerate((prompt, *pair)):
      start, stop = stop, stop + len(ids)
      tokens[row, start:stop], segments[row, start:stop] = ids, index
      positions[row, start:stop] = np.arange(len(ids)) + (len(prompt) if index else 0)
      if index:
        last[row, index - 1] = stop - 1
    margin[row], weight[row] = margins[row], 1
  return RewardBatch(tokens, positions, segments, last, margin, weight)
