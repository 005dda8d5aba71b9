"""Log-prob and entropy of given response tokens: the training forward pass."""

import jax
import jax.numpy as jnp

from qempo_jax import sharding
from qempo_jax.logit_transform import PLAIN
from qempo_jax.logit_transform import LogitTransform
from qempo_jax.models import transformer
from qempo_jax.models.config import ModelConfig
from qempo_jax.token_stats import MixtureStats
from qempo_jax.token_stats import TokenStats
from qempo_jax.token_stats import token_stats
from qempo_jax.types import PackedGroups


def score_groups(
  params,
  config: ModelConfig,
  packed: PackedGroups,
  *,
  group_size: int,
  max_length: int,
  temperature: float,
  chunk_size: int,
  remat: bool = True,
  transform: LogitTransform = PLAIN,
) -> TokenStats | MixtureStats:
  """Scores every response of every group, computing each prompt once.

  Args:
    params: the decoder's parameters.
    config: the decoder's config.
    packed: prompts with their responses.
    group_size: G, responses a prompt.
    max_length: T, tokens of the longest response.
    temperature: the sampling temperature.
    chunk_size: tokens whose logits are in memory at once, on each device.
    remat: recompute blocks in the backward pass.
    transform: the sampler's; with truncation the responses are samples of this policy, whose tokens count as kept.

  Returns:
    Statistics of shape [P, G, T], nats, 0 on padding; `MixtureStats` for a mixture of experts.
  """
  hidden, router = transformer.forward_groups(params, config, packed, remat=remat)
  predicting = jnp.take_along_axis(hidden, packed.source[:, :, None], axis=1)
  rows, per_row = predicting.shape[0], packed.layout.prompts

  def stats_of(unembedding, hidden_BxSxD, target_BxS, *time_BxS):
    flat = token_stats(
      hidden_BxSxD.reshape(-1, hidden_BxSxD.shape[-1]),
      unembedding,
      target_BxS.reshape(-1),
      temperature=temperature,
      chunk_size=chunk_size,
      compute_dtype=config.compute_dtype,
      logit_softcap=config.logit_softcap,
      num_tokens=config.num_tokens,
      forbidden=config.forbidden,
      implementation=config.token_stats,
      transform=transform,
      lengths=time_BxS[0].reshape(-1) if time_BxS else None,
    )
    return jax.tree.map(lambda x: x.reshape(target_BxS.shape), flat)

  time = (packed.time,) if transform.acts else ()
  stats = sharding.over_rows(stats_of, transformer.unembedding(params), predicting, packed.target, *time)
  row = jnp.arange(rows)[:, None]

  def unpack(values):
    empty = jnp.zeros((rows, per_row * group_size, max_length), values.dtype)
    index = (row, packed.sample, packed.time)
    return empty.at[index].set(values, mode="drop").reshape(rows * per_row, group_size, max_length)

  stats = jax.tree.map(unpack, stats)
  return stats if router is None else MixtureStats(*stats, jnp.full(len(stats.log_prob), router))
