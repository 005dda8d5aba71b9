"""A decoder of `qempo_jax.models`, small enough to score every response to a prompt in one call."""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from qempo_jax.models import parameters
from qempo_jax.models import transformer
from qempo_jax.models.config import ModelConfig
from qempo_jax.testing.sequence_space import SequenceSpace


def tiny_config(vocab_size: int, *, width: int, num_layers: int) -> ModelConfig:
  """A decoder with two query heads that share one key head, and an output projection of its own.

  Args:
    vocab_size: V, EOS included.
    width: width of the residual stream, a multiple of 4; the feed-forward layer is twice as wide.
    num_layers: decoder blocks.

  Returns:
    Its `ModelConfig`.
  """
  return ModelConfig(
    vocab_size=vocab_size,
    hidden_size=width,
    intermediate_size=2 * width,
    num_layers=num_layers,
    num_heads=2,
    num_kv_heads=1,
    head_dim=width // 2,
    rope_theta=100.0,
    norm_epsilon=1e-5,
    tie_embeddings=False,
  )


def functions(
  space: SequenceSpace, prompt: Array, config: ModelConfig, *, init_stddev: float
) -> tuple[Callable[[Array], Any], Callable[[Any], Array]]:
  """The two functions of an `EnumerablePolicy`.

  The prompt and the tree of prefixes are one row, in which every prefix attends to its own beginnings. Each next-token
  distribution is therefore computed once, for all responses that share it.

  Args:
    space: the N responses, of at most T tokens.
    prompt: [L] token ids below V, L >= 1; they come before every response. May be traced.
    config: the decoder's config.
    init_stddev: standard deviation of the initial matrices.

  Returns:
    (init: key -> params, token_log_probs: params -> [N, T] log-probs of the responses' own tokens, nats).
  """
  prompt = jnp.asarray(prompt, jnp.int32)
  start = len(prompt) - 1  # The prompt's last token stands for the empty prefix.
  last_token, depth, attends = _tree(space)
  tokens_R = jnp.concatenate([prompt, last_token[1:]])
  positions_R = np.concatenate([np.arange(start), start + depth])
  mask_RxR = np.tri(len(positions_R), dtype=bool)
  mask_RxR[start:, start:] = attends

  def init(key: Array):
    return parameters.init(key, config, stddev=init_stddev)

  def token_log_probs(params) -> Array:
    row = (tokens_R[None], positions_R[None], jnp.asarray(mask_RxR)[None])
    hidden_RxD = transformer.forward(params, config, *row, remat=False)[0]
    logits = hidden_RxD[start:] @ transformer.unembedding(params).T
    return space.gather_tokens(jax.nn.log_softmax(logits))

  return init, token_log_probs


def _tree(space: SequenceSpace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Last token [K] (0 for the empty prefix) and length [K] of each prefix, and a mask [K, K] of its beginnings."""
  last_token, depth = np.zeros((2, space.num_prefixes), np.int32)
  attends = np.eye(space.num_prefixes, dtype=bool)
  for n, t in zip(*np.nonzero(space.mask), strict=True):
    node = space.prefix[n, t]
    depth[node] = t
    attends[node, space.prefix[n, :t]] = True
    if t:
      last_token[node] = space.tokens[n, t - 1]
  return last_token, depth, attends
