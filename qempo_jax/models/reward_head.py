"""A decoder with a scalar head: the score of a text is a linear function of its last token's hidden state.

    score = w' h,    h [D] the final-norm output at the last token

The parameter tree is the decoder's, without an output projection, and "score" [D, 1].
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from qempo_jax.errors import InputError
from qempo_jax.models import delta_net
from qempo_jax.models import layers
from qempo_jax.models import stacks
from qempo_jax.models import transformer
from qempo_jax.models.config import ModelConfig
from qempo_jax.sharding import STATE_RULES
from qempo_jax.sharding import P

# Sharding: the decoder's rules, with the head's one column replicated.
RULES = ((r"(^|/)score$", P()), *STATE_RULES)


def from_decoder(config: ModelConfig, params: dict[str, Any]) -> tuple[ModelConfig, dict[str, Any]]:
  """A language model with a head that scores every text 0: (config, parameters).

  The output projection is dropped; the config calls it tied.
  """
  body = {name: leaf for name, leaf in params.items() if name != "unembedding"}
  score = jnp.zeros((params["embedding"].shape[1], 1), jnp.float32)
  return without_projection(config), body | {"score": score}


def split(params: dict[str, Any], config: ModelConfig, trainable: str) -> tuple[dict[str, Any], dict[str, Any]]:
  """Splits the tree into trainable and frozen parameters.

  Args:
    params: the whole tree.
    config: the decoder's config.
    trainable: "all"; "head" for the head alone; "last:N" for the last N blocks, the final norm and the head.

  Returns:
    (trainable, frozen); `join` is the inverse.

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
  first = config.num_layers - int(digits)
  part = lambda *blocks: stacks.part(params["layers"], config.kinds, *blocks)
  last = part(first, config.num_layers)
  trainable_params = {"layers": last, "final_norm": params["final_norm"], "score": params["score"]}
  return trainable_params, {"embedding": params["embedding"], "layers": part(0, first)}


def join(trainable_params: dict[str, Any], frozen: dict[str, Any]) -> dict[str, Any]:
  """The whole tree, from the two parts of `split`."""
  params = frozen | trainable_params
  if "layers" in frozen and "layers" in trainable_params:
    params["layers"] = jax.tree.map(
      lambda first, last: jnp.concatenate([first, last]), frozen["layers"], trainable_params["layers"]
    )
  return params


def frozen_blocks(frozen: dict[str, Any]) -> int:
  """Number of frozen blocks, which come first."""
  return stacks.count(frozen["layers"]) if "layers" in frozen else 0


def read_scores(params, config: ModelConfig, x_BxLxD, last_BxG):
  """Final norm and head at columns of each row: scores [B, G], float32."""
  picked = jnp.take_along_axis(x_BxLxD, last_BxG[:, :, None], axis=1)
  hidden = layers.rms_norm(picked, params["final_norm"], config.norm_epsilon, config.norm_offset)
  # One column, in full precision for every compute dtype: a rounded score would tie similar texts.
  product = jnp.matmul(
    hidden.astype(jnp.float32), params["score"].astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
  )
  return product[:, :, 0]


def score_rows(params, config: ModelConfig, tokens_BxL, valid_BxL, last_B):
  """The score of every row of padded texts, [B, 1] float32.

  Args:
    params: the whole tree.
    config: the decoder's config.
    tokens_BxL: token ids, padded on either side.
    valid_BxL: True on text tokens.
    last_B: column of the score, from `last_valid` or `last_unlike_padding`.
  """
  positions_BxL = jnp.cumsum(valid_BxL, axis=1) - 1
  mask_BxLxL = transformer.causal_mask(positions_BxL, valid_BxL)
  x = transformer.embed(params, config, tokens_BxL)
  mixers = transformer.Mixers(transformer.masked(config, positions_BxL, mask_BxLxL), delta_net.over_rows(valid_BxL))
  x = transformer.run_blocks(params["layers"], config, x, positions_BxL, mixers, remat=False)
  return read_scores(params, config, x, last_B[:, None])


def last_valid(valid_BxL):
  """Column of every row's last valid token, [B]; the last column of a row without any."""
  return valid_BxL.shape[1] - 1 - jnp.argmax(valid_BxL[:, ::-1], axis=1)


def last_unlike_padding(tokens_BxL, pad_token_id: int):
  """Column of the score in PyTorch transformers: every row's last token that is not the padding token, [B].

  A text that itself ends in padding tokens is scored before them, for any attention mask. A row of padding tokens is
  scored at its first token (`GenericForSequenceClassification`, transformers 4.40 and later).
  """
  return jnp.argmax(jnp.arange(tokens_BxL.shape[1]) * (tokens_BxL != pad_token_id), axis=1)


def without_projection(config: ModelConfig) -> ModelConfig:
  """Config of a decoder that predicts no tokens."""
  return dataclasses.replace(config, tie_embeddings=True, logit_softcap=None)
