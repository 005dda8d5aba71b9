"""A decoder with a scalar head: the score of a text is read off the hidden state of its last token.

    score = w' h,    h [D] the final-norm output at the last token

The parameter tree is the decoder's, without an output projection, and "score" [D, 1].
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from qempo_jax.errors import InputError
from qempo_jax.models import layers
from qempo_jax.models import transformer
from qempo_jax.models.config import ModelConfig
from qempo_jax.sharding import STATE_RULES
from qempo_jax.sharding import P

# Placement on the mesh: the decoder's rules, and the head's one column everywhere.
RULES = ((r"(^|/)score$", P()), *STATE_RULES)


def from_decoder(config: ModelConfig, params: dict[str, Any]) -> tuple[ModelConfig, dict[str, Any]]:
  """A language model with a head that scores every text 0: (shape, parameters).

  The output projection is left out; "tied" in the shape says that there is none of its own.
  """
  body = {name: leaf for name, leaf in params.items() if name != "unembedding"}
  score = jnp.zeros((params["embedding"].shape[1], 1), jnp.float32)
  return without_projection(config), body | {"score": score}


def split(params: dict[str, Any], config: ModelConfig, trainable: str) -> tuple[dict[str, Any], dict[str, Any]]:
  """Parts the tree into what is trained and what stays as it is.

  Args:
    params: the whole tree.
    config: the decoder's shape.
    trainable: "all"; "head" for the head alone; "last:N" for the last N blocks, the final norm and the head.

  Returns:
    (trained, frozen); `join` puts them together.

  Raises:
    InputError: another choice, or more blocks than there are.
  """
  if trainable == "all":
    return dict(params), {}
  if trainable == "head":
    return {"score": params["score"]}, {name: leaf for name, leaf in params.items() if name != "score"}
  kind, _, digits = trainable.partition(":")
  if kind != "last" or not digits.isdigit() or not 1 <= int(digits) <= config.num_layers:
    raise InputError(
      f"reward_model.trainable={trainable!r} is not known; use all, head, or last:N with N from 1 to"
      f" {config.num_layers} blocks"
    )
  at = config.num_layers - int(digits)
  part = lambda blocks: jax.tree.map(lambda leaf: leaf[blocks], params["layers"])
  trained = {"layers": part(slice(at, None)), "final_norm": params["final_norm"], "score": params["score"]}
  return trained, {"embedding": params["embedding"], "layers": part(slice(at))}


def join(trained: dict[str, Any], frozen: dict[str, Any]) -> dict[str, Any]:
  """The whole tree of the two parts that `split` made."""
  params = frozen | trained
  if "layers" in frozen and "layers" in trained:
    params["layers"] = jax.tree.map(
      lambda first, last: jnp.concatenate([first, last]), frozen["layers"], trained["layers"]
    )
  return params


def frozen_blocks(frozen: dict[str, Any]) -> int:
  """How many blocks, from the first on, are frozen."""
  return len(jax.tree.leaves(frozen["layers"])[0]) if "layers" in frozen else 0


def read_scores(params, config: ModelConfig, x_BxLxD, last_BxG):
  """Final norm and head at some places of each row: scores [B, G], float32."""
  picked = jnp.take_along_axis(x_BxLxD, last_BxG[:, :, None], axis=1)
  hidden = layers.rms_norm(picked, params["final_norm"], config.norm_epsilon, config.norm_offset)
  # One column: in full precision whatever the compute dtype, as a rounded score would tie close texts.
  product = jnp.matmul(
    hidden.astype(jnp.float32), params["score"].astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
  )
  return product[:, :, 0]


def score_places(params, config: ModelConfig, tokens_BxL, positions_BxL, mask_BxLxL, last_BxG, *, remat=False):
  """Scores at some places of each row.

  Args:
    params: the whole tree.
    config: the decoder's shape.
    tokens_BxL: token ids.
    positions_BxL: rotary positions; those of padding do not matter.
    mask_BxLxL: true where a query may see a key.
    last_BxG: places of the last tokens of the row's texts.
    remat: recompute blocks in the backward pass.

  Returns:
    [B, G] float32.
  """
  x = transformer.embed(params, config, tokens_BxL)
  attend = transformer.masked(config, positions_BxL, mask_BxLxL)
  x = transformer.run_blocks(params["layers"], config, x, positions_BxL, attend, remat=remat)
  return read_scores(params, config, x, last_BxG)


def score_rows(params, config: ModelConfig, tokens_BxL, valid_BxL, last_B):
  """The score of every row of padded texts, [B, 1] float32.

  Args:
    params: the whole tree.
    config: the decoder's shape.
    tokens_BxL: token ids, padded on either side.
    valid_BxL: true on the texts' own tokens.
    last_B: the place that is read, of `last_place` or of `last_unlike_padding`.
  """
  positions_BxL = jnp.cumsum(valid_BxL, axis=1) - 1
  mask = transformer.causal_mask(positions_BxL, valid_BxL)
  return score_places(params, config, tokens_BxL, positions_BxL, mask, last_B[:, None])


def last_place(valid_BxL):
  """Place of every row's last valid token, [B]; the last place of a row without any."""
  return valid_BxL.shape[1] - 1 - jnp.argmax(valid_BxL[:, ::-1], axis=1)


def last_unlike_padding(tokens_BxL, pad_token_id: int):
  """Where PyTorch transformers reads the score: every row's last token that is not the padding token, [B].

  A text whose own last tokens are the padding token is read before them, whatever its attention mask says, and a row
  of nothing else at its first token (`GenericForSequenceClassification`, transformers 4.40 and later).
  """
  ordinal_L = jnp.arange(tokens_BxL.shape[1])
  return jnp.argmax(ordinal_L * (tokens_BxL != pad_token_id), axis=1)


def without_projection(config: ModelConfig) -> ModelConfig:
  """The shape of a decoder that predicts no tokens."""
  return dataclasses.replace(config, tie_embeddings=True, logit_softcap=None)
