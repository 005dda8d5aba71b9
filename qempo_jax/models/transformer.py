"""A decoder over whole rows, as pure functions of its parameters; `decoding` has it token by token.

Parameters are stacked over blocks, see `parameters`, so that one `lax.scan` runs them all and compile time does not
grow with depth.
"""

from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from qempo_jax import sharding
from qempo_jax.errors import InputError
from qempo_jax.linear import linear
from qempo_jax.masking import at_least_float32
from qempo_jax.models import attention
from qempo_jax.models import decoder_block
from qempo_jax.models import delta_net
from qempo_jax.models import experts
from qempo_jax.models import layers
from qempo_jax.models import positions
from qempo_jax.models import shared_prompt
from qempo_jax.models import stacks
from qempo_jax.models.config import ModelConfig
from qempo_jax.token_stats import mask_columns
from qempo_jax.token_stats import softcap
from qempo_jax.types import PackedGroups


class Mixers(NamedTuple):
  """Functions that mix the tokens of rows.

  Attributes:
    attend: attention, (q, k, v, the block's window, sinks) -> [B, L, H, K], such as `masked`.
    recur: gated delta nets, `delta_net.over_rows` or `delta_net.over_groups`.
  """

  attend: Any
  recur: Any


def unembedding(params):
  """The output projection [V, D]: its own matrix, or the tied embedding."""
  return params.get("unembedding", params["embedding"])


def logits(hidden, unembedding_VxD, config: ModelConfig):
  """Next-token logits [..., V] of final hidden states [..., D].

  They are soft-capped if the decoder caps them, and -inf for padding and forbidden tokens.
  """
  product = linear(hidden, unembedding_VxD, config.compute_dtype, transpose=True)
  return mask_columns(softcap(product, config.logit_softcap), config.num_tokens, config.forbidden)


def block_inputs(params, config: ModelConfig, tokens, embedded):
  """Inputs that each block has besides the stream (Gemma 3n's per-layer embeddings): [N, ..., P], or None.

      (rms_norm(x W / sqrt(D)) + sqrt(P) e) / sqrt(2),   x the embedding, e the block's own embedding of the token

  Args:
    params: the parameter tree.
    config: the decoder's config.
    tokens: [...] token ids.
    embedded: [..., D] their embeddings, from `embed`.
  """
  if not config.block_embedding:
    return None
  split = lambda x: x.reshape(*tokens.shape, config.num_layers, -1)
  width = config.block_embedding[1]
  projected = linear(embedded, params["block_projection"], config.compute_dtype, transpose=True)
  projected = split(projected * config.hidden_size**-0.5)
  projected = layers.rms_norm(projected, params["block_projection_norm"], config.norm_epsilon, config.norm_offset)
  own = split(at_least_float32(params["block_embedding"][tokens])) * width**0.5
  return jnp.moveaxis((projected + own) * 2**-0.5, -2, 0)


def forward(params, config: ModelConfig, tokens_BxL, positions_BxL, mask_BxLxL, *, remat=True):
  """Hidden state of every position, after the final norm and `logit_divisor`.

  Args:
    params: the parameter tree.
    config: the decoder's config.
    tokens_BxL: token ids.
    positions_BxL: rotary positions, arbitrary on padding.
    mask_BxLxL: True if a query (second axis) attends to a key (third axis).
    remat: apply `config.remat` in the backward pass; False keeps all activations.

  Returns:
    [B, L, D].
  """
  recur = delta_net.over_mask(mask_BxLxL, positions_BxL, config)
  mixers = Mixers(masked(config, positions_BxL, mask_BxLxL), recur)
  return _forward(params, config, tokens_BxL, positions_BxL, mixers, remat)


def forward_groups(params, config: ModelConfig, packed: PackedGroups, *, remat=True):
  """Hidden states and router loss of packed rows, each prompt computed once for its whole group; see `shared_prompt`.

  Args:
    params: the parameter tree.
    config: the decoder's config.
    packed: prompts with their responses.
    remat: as in `forward`.

  Returns:
    (hidden state of every column, after the final norm and `logit_divisor`, [P, R, D]; the routers' load-balancing
    loss, see `experts`, or None without experts).
  """
  recur = delta_net.over_groups(packed.positions, packed.segments, packed.layout, config)
  mixers = Mixers(shared_prompt.attender(packed, config), recur)
  x_PxRxD = embed(params, config, packed.tokens)
  inputs = block_inputs(params, config, packed.tokens, x_PxRxD)
  x_PxRxD, router = _run(params["layers"], config, x_PxRxD, packed.positions, mixers, inputs, remat=remat)
  if router is not None:
    router = experts.balancing_loss(router, packed.segments >= 0, config.experts_per_token)
  return final_norm(params, config, x_PxRxD), router


def rematerialised(body, name: str):
  """The body of a scan over blocks, with the named rematerialisation policy."""
  if name == "none":
    return body
  return jax.checkpoint(body, policy=_REMAT_POLICIES[name])


# Activations that each policy keeps of a block: none, every product, or products with weights (attention's scores and
# sums are batched, so recomputed).
_REMAT_POLICIES = {
  "full": None,
  "dots": jax.checkpoint_policies.dots_saveable,
  "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def causal_mask(positions_BxL, valid_BxL):
  """Mask [B, L, L] by which each valid token attends to the valid tokens at or before its own position."""
  earlier = positions_BxL[:, None, :] <= positions_BxL[:, :, None]
  return earlier & valid_BxL[:, None, :] & valid_BxL[:, :, None]


def run_blocks(blocks, config: ModelConfig, x_BxLxD, positions_BxL, mixers, *, first: int = 0, remat: bool):
  """Runs consecutive blocks of a decoder without inputs of each block's own.

  Args:
    blocks: their parameters, stacked.
    config: the whole decoder's config.
    x_BxLxD: the residual stream before them.
    positions_BxL: rotary positions.
    mixers: `Mixers` over whole rows.
    first: index of the first of them in the decoder.
    remat: apply `config.remat` in the backward pass.

  Returns:
    The residual stream after them, [B, L, D].

  Raises:
    InputError: the decoder's blocks need more than the stream.
  """
  if config.block_embedding or config.shared_blocks:
    raise InputError("this model's blocks read tokens or other blocks' keys too; give a reward model of another family")
  return _run(blocks, config, x_BxLxD, positions_BxL, mixers, None, first=first, remat=remat)[0]


def _run(blocks, config, x_BxLxD, positions_BxL, mixers, inputs, *, first=0, remat):
  """`run_blocks`, with the routers' logits [N, B, L, E], None without experts."""
  run = block_of_rows(config, positions_BxL, mixers)

  def step(x_BxLxD, layer, *args, kind, keeps):
    x_BxLxD, carried, router = run(x_BxLxD, sharding.constrain_params(layer, layer=True), *args, kind=kind)
    return x_BxLxD, router, carried if keeps else None

  size = stacks.count(blocks)
  options = jax.tree.map(lambda leaf: leaf[first : first + size], (positions.stacked_blocks(config), inputs))
  wrap = (lambda f: rematerialised(f, config.remat)) if remat else lambda f: f
  x_BxLxD, outs = stacks.run(step, x_BxLxD, blocks, config, options, first=first, wrap=wrap)
  routers = [router for _, router in outs if router is not None]
  return x_BxLxD, routers[0] if len(routers) == 1 else jnp.concatenate(routers) if routers else None


def _forward(params, config, tokens_BxL, positions_BxL, mixers, remat):
  x_BxLxD = embed(params, config, tokens_BxL)
  inputs = block_inputs(params, config, tokens_BxL, x_BxLxD)
  x_BxLxD, _ = _run(params["layers"], config, x_BxLxD, positions_BxL, mixers, inputs, remat=remat)
  return final_norm(params, config, x_BxLxD)


def masked(config: ModelConfig, positions_BxL, mask_BxLxL):
  """Attention over whole rows under a mask [B, L, L] and the block's window: (q, k, v, window, sinks) -> [B, L, H, K]."""
  queries, keys = positions_BxL[:, :, None], positions_BxL[:, None, :]
  seen = lambda window: positions.within_window(mask_BxLxL, queries, keys, window)
  return lambda q, k, v, window, sinks: attention.attention(q, k, v, seen(window), config, sinks)


def block_of_rows(config, positions_BxL, mixers):
  """A block over whole rows: (x, its parameters, (`positions.Block`, its own input), kept, kind) -> (x, carried, router)."""
  rotations = positions.rope_rotations(config, positions_BxL)

  def run(x_BxLxD, layer, options, kept, *, kind):
    block, own = options

    def attend(q, k, v, sinks):
      k, v = kept[kind.mixer] if kind.reuses else (k, v)
      return mixers.attend(q, k, v, block.window, sinks), (k, v)

    rotation = positions.block_rotation(rotations, block, kind)
    return decoder_block.run(layer, x_BxLxD, rotation, config, attend, mixers.recur, own)

  return run


def embed(params, config: ModelConfig, tokens):
  """The residual stream before the first block: [..., D]."""
  embedded = at_least_float32(params["embedding"][tokens])
  embedded = embedded if config.embedding_scale == 1 else embedded * config.embedding_scale
  return sharding.constrain_rows(embedded)


def final_norm(params, config, x):
  """The stream after the last block as `logits` reads it: normed, and divided by `logit_divisor`."""
  normed = layers.rms_norm(x, params["final_norm"], config.norm_epsilon, config.norm_offset)
  return normed if config.logit_divisor == 1 else normed / config.logit_divisor
