"""A decoder token by token: prompts once, then one token for every slot of a cache.

Shape letters: P prompts, L their length; R rows, G slots of a row, D width.
"""

import jax
import jax.numpy as jnp

from qempo_jax import sharding
from qempo_jax.models import decoder_block
from qempo_jax.models import delta_net
from qempo_jax.models import positions
from qempo_jax.models import stacks
from qempo_jax.models import transformer
from qempo_jax.models.config import ModelConfig
from qempo_jax.models.kv_cache import KVCache


def for_decoding(params, config: ModelConfig, length: int):
  """Parameters for `decode`, made once for all tokens of sequences of at most this length, prompt and response.

  Matrices are rounded to the compute dtype. On a mesh they are gathered over fsdp too, since each use would do so. The
  embedding for look-up is not rounded, so that results equal those of the unrounded parameters. "layers" is a list of
  blocks, so that none has to be sliced again. "rotations" is a table of every position's cosines and sines, which XLA
  would recompute in each operation that rotates.
  """

  def cast(path, leaf):
    return leaf if leaf.ndim < 3 or path[0].key.endswith("_bias") else leaf.astype(config.compute_dtype)

  matrices = {"layers": jax.tree.map_with_path(cast, params["layers"])}
  matrices["unembedding"] = transformer.unembedding(params).astype(config.compute_dtype)
  matrices = sharding.constrain_params(matrices, gathered=True)
  blocks = [stacks.one(matrices["layers"], config.kinds, i) for i in range(config.num_layers)]
  rotations = positions.rope_rotations(config, jnp.arange(length))
  return params | matrices | {"layers": blocks, "rotations": rotations}


def prefill(params, config: ModelConfig, tokens_PxL, mask_PxL):
  """Runs the prompts once, keeping their keys and values.

  Args:
    params: the parameter tree.
    config: the decoder's config.
    tokens_PxL: prompts, padded on either side.
    mask_PxL: True on prompt tokens; positions are counted from it.

  Returns:
    (hidden [P, D] of each prompt's last token, every block's keys and values [P, L, J, K], or inputs of the convolution
    and state of `delta_net`).
  """
  positions_PxL = jnp.cumsum(mask_PxL, axis=1) - 1
  mixers = transformer.Mixers(
    transformer.masked(config, positions_PxL, transformer.causal_mask(positions_PxL, mask_PxL)),
    delta_net.over_rows(mask_PxL),
  )
  embedded = transformer.embed(params, config, tokens_PxL)
  inputs = transformer.block_inputs(params, config, tokens_PxL, embedded)
  run = transformer.block_of_rows(config, positions_PxL, mixers)

  def step(*args, kind, keeps):
    x_PxLxD, carried, _ = run(*args, kind=kind)
    return x_PxLxD, carried, carried if keeps else None

  options = (positions.stacked_blocks(config), inputs)
  x_PxLxD, outs = stacks.run(step, embedded, params["layers"], config, options)
  found = {}
  for blocks, carried in outs:
    found |= {block: jax.tree.map(lambda leaf, i=i: leaf[i], carried) for i, block in enumerate(blocks)}
  length = tokens_PxL.shape[1]
  last_P = length - 1 - jnp.argmax(mask_PxL[:, ::-1], axis=1)
  hidden_PxD = jnp.take_along_axis(x_PxLxD, last_P[:, None, None], axis=1)[:, 0]
  own = [found[block] for block in sorted(found) if not config.kinds[block].reuses]
  return transformer.final_norm(params, config, hidden_PxD), own


def decode(params, config: ModelConfig, tokens_RxG, cache: KVCache):
  """One more token for every slot; the blocks are unrolled, so that none of their arrays is sliced from a larger one.

  Args:
    params: from `for_decoding`.
    config: the decoder's config.
    tokens_RxG: the tokens just sampled.
    cache: keys and values of earlier tokens.

  Returns:
    (hidden [R, G, D], the cache with these tokens).

  Raises:
    ValueError: the parameters were made for shorter sequences than the cache holds.
  """
  length, capacity = len(params["rotations"][0].cos), cache.prompt_mask_RxL.shape[1] + cache.ring
  if length < capacity:
    raise ValueError(
      f"for_decoding was called with length {length}, and the cache holds {capacity}: pass at least that"
    )
  rotations = jax.tree.map(lambda table: table[cache.next_positions_RxG], params["rotations"])
  blocks = positions.list_blocks(config)
  masks = {block.window: cache.masks(block.window) for block in blocks}
  entry, stored, last = cache.clock % cache.ring, [], {}
  x_RxGxD = transformer.embed(params, config, tokens_RxG)
  inputs = transformer.block_inputs(params, config, tokens_RxG, x_RxGxD)
  caches = iter(cache.layers)
  for index, (layer, block, kind) in enumerate(zip(params["layers"], blocks, config.kinds)):
    layer_cache = last[kind.mixer] if kind.reuses else next(caches)

    def attend(q, k, v, sinks, layer_cache=layer_cache, masks=masks[block.window]):
      kept = layer_cache if k is None else layer_cache.stored(k, v, entry)
      return kept.attend(q, *masks, config, sinks), kept

    def recur(inputs, layer_cache=layer_cache):
      return layer_cache.step(inputs, cache.lengths_RxG == 0)

    rotation = positions.block_rotation(rotations, block, kind)
    own = None if inputs is None else inputs[index]
    x_RxGxD, new, _ = decoder_block.run(layer, x_RxGxD, rotation, config, attend, recur, own)
    last[kind.mixer] = new
    stored += [] if kind.reuses else [new]
  return transformer.final_norm(params, config, x_RxGxD), cache.advance(stored)
