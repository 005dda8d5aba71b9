"""A decoder as pure functions over stacked parameters.

Parameters are a nested dict. Every leaf under "layers" has the blocks as its first axis, or those that have it, so that
one `lax.scan` runs them all and compile time does not grow with depth; see `stacks`.
"""

import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from qempo_jax import sharding
from qempo_jax.errors import InputError
from qempo_jax.linear import linear
from qempo_jax.masking import at_least_float32
from qempo_jax.models import attention
from qempo_jax.models import delta_net
from qempo_jax.models import experts
from qempo_jax.models import layers
from qempo_jax.models import positions
from qempo_jax.models import shared_prompt
from qempo_jax.models import stacks
from qempo_jax.models.config import EXPERTS
from qempo_jax.models.config import ModelConfig
from qempo_jax.models.kv_cache import KVCache
from qempo_jax.token_stats import mask_columns
from qempo_jax.token_stats import softcap
from qempo_jax.types import PackedGroups


class Mixers(NamedTuple):
  """What mixes the tokens of rows.

  Attributes:
    attend: attention, (q, k, v, the block's window, sinks) -> [B, L, H, K], such as `masked`.
    recur: gated delta nets, `delta_net.over_rows` or `delta_net.over_groups`.
  """

  attend: Any
  recur: Any


def param_shapes(config: ModelConfig):
  """The parameter tree with each leaf's shape, which init and loading follow."""
  d, f = config.hidden_size, config.intermediate_size
  blocks = _mixer_shapes(config, config.head_dim, config.num_kv_heads)
  if any(kind.mixer == "global" for kind in config.kinds):
    sizes = config.global_head_dim or config.head_dim, config.global_kv_heads or config.num_kv_heads
    own = _mixer_shapes(config, *sizes)
    missing = ("value", "value_bias") if config.keys_as_values else ()
    blocks |= {f"global_{key}": own[key] for key in own if key not in missing}
  if config.delta_net:
    blocks |= delta_net.param_shapes(config.delta_net, d)
  e, g = config.num_experts, config.expert_width or f
  if e:
    blocks |= {"router": (d, e), "expert_gate": (e, d, g), "expert_up": (e, d, g), "expert_down": (e, g, d)}
  if not e or config.experts_beside != "none":
    blocks |= {"gate": (d, f), "up": (d, f), "down": (f, d)}
  if config.experts_beside == "gated":
    blocks |= {"dense_factor": (d, 1)}
  if config.experts_beside == "normed":
    blocks |= {"router_norm": (d,), "expert_scale": (e,)}
    blocks |= dict.fromkeys(("expert_norm", "expert_post_norm", "dense_post_norm"), (d,))
  if w := config.shared_width:
    blocks |= {"shared_gate": (d, w), "shared_up": (d, w), "shared_down": (w, d)}
  outputs = {"gate": f, "up": f, "down": d, "router": e, "expert_gate": g, "expert_up": g, "expert_down": d}
  bias = lambda name: (e, outputs[name]) if name in EXPERTS else (outputs[name],)
  blocks |= {f"{name}_bias": bias(name) for name in config.biases if name in outputs}
  if config.norm_placement != "post":
    blocks |= {"attention_norm": (d,), "feed_forward_norm": (d,)}
  if config.norm_placement != "pre":
    blocks |= {"attention_post_norm": (d,), "feed_forward_post_norm": (d,)}
  if config.block_embedding:
    p = config.block_embedding[1]
    blocks |= {"block_gate": (d, p), "block_output": (p, d), "block_norm": (d,)}
  if config.block_scale:
    blocks |= {"block_scale": (1,)}
  stacked = {key: (len(stacks.members(key, config.kinds)), *shape) for key, shape in blocks.items()}
  shapes = {"embedding": (config.vocab_size, d), "final_norm": (d,)}
  if config.block_embedding:
    shapes |= {
      "block_embedding": (config.block_embedding[0], config.num_layers * p),
      "block_projection": (config.num_layers * p, d),
    }
    shapes |= {"block_projection_norm": (p,)}
  if not config.tie_embeddings:
    shapes["unembedding"] = (config.vocab_size, d)
  return shapes | {"layers": {key: shape for key, shape in stacked.items() if shape[0]}}


def _mixer_shapes(config: ModelConfig, k: int, j: int) -> dict[str, tuple[int, ...]]:
  """Shapes of a block's attention with heads of K numbers, J of them with keys and values."""
  d, h = config.hidden_size, config.num_heads
  shapes = {"query": (d, h, 2 * k if config.gated_attention else k), "key": (d, j, k), "value": (d, j, k)}
  shapes |= {"output": (h, k, d)}
  outputs = {"query": math.prod(shapes["query"][1:]), "key": j * k, "value": j * k, "output": d}
  shapes |= {f"{name}_bias": (outputs[name],) for name in config.biases if name in outputs}
  if config.qk_norm == "head":
    shapes |= {"query_norm": (k,), "key_norm": (k,)}
  if config.qk_norm == "width":
    shapes |= {"query_norm": (h * k,), "key_norm": (j * k,)}
  if config.attention_sinks:
    shapes |= {"sinks": (h,)}
  return shapes


_ONES = ("block_scale", "expert_scale", "delta_step", "delta_norm")  # Factors without the norms' offset.


def init(rng, config: ModelConfig, *, stddev=0.02, dtype=jnp.float32):
  """Random parameters: norms at one, biases at zero, every matrix normal with the given standard deviation."""
  shapes = param_shapes(config)
  leaves, treedef = jax.tree.flatten_with_path(shapes, is_leaf=lambda x: isinstance(x, tuple))
  keys = jax.random.split(rng, len(leaves))

  def leaf(path, shape, key):
    name = path[-1].key
    if name in _ONES:
      return jnp.ones(shape, dtype)
    if "norm" in name:
      return jnp.full(shape, 1 - config.norm_offset, dtype)
    if "bias" in name:
      return jnp.zeros(shape, dtype)
    if name == "delta_log_rate":
      return jnp.log(jax.random.uniform(key, shape, dtype, 1.0, 16.0))
    return stddev * jax.random.normal(key, shape, dtype)

  return treedef.unflatten([leaf(path, shape, key) for (path, shape), key in zip(leaves, keys)])


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
  """What each block reads besides the stream (Gemma 3n's per-layer embeddings): [N, ..., P], or None.

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


def rounded(params, config: ModelConfig):
  """Matrices in the compute dtype, rounded once for many uses: (params, unembedding).

  On a mesh they are gathered over fsdp too, since each use would do so. The embedding for look-up is not rounded, so
  that results equal those of the unrounded parameters.
  """

  def cast(path, leaf):
    return leaf if leaf.ndim < 3 or path[0].key.endswith("_bias") else leaf.astype(config.compute_dtype)

  matrices = {"layers": jax.tree.map_with_path(cast, params["layers"])}
  matrices["unembedding"] = unembedding(params).astype(config.compute_dtype)
  matrices = sharding.constrain_params(matrices, gathered=True)
  return params | {"layers": matrices["layers"]}, matrices["unembedding"]


def for_decoding(params, config: ModelConfig, length: int):
  """Parameters for `decode`, made once for all tokens of sequences of at most this length, prompt and response.

  "layers" is a list of blocks, so that none has to be sliced again. "rotations" is a table of every position's cosines
  and sines, which XLA would recompute in each operation that rotates.
  """
  params, unembedding_VxD = rounded(params, config)
  blocks = [stacks.one(params["layers"], config.kinds, i) for i in range(config.num_layers)]
  rotations = positions.rope_rotations(config, jnp.arange(length))
  return params | {"layers": blocks, "unembedding": unembedding_VxD, "rotations": rotations}


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
  return _final_norm(params, config, x_PxRxD), router


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
  mixers = Mixers(masked(config, positions_PxL, causal_mask(positions_PxL, mask_PxL)), delta_net.over_rows(mask_PxL))
  embedded = embed(params, config, tokens_PxL)
  inputs = block_inputs(params, config, tokens_PxL, embedded)
  run = _full_block(config, positions_PxL, mixers)

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
  return _final_norm(params, config, hidden_PxD), own


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
  x_RxGxD = embed(params, config, tokens_RxG)
  inputs = block_inputs(params, config, tokens_RxG, x_RxGxD)
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
    x_RxGxD, new, _ = layers.block(layer, x_RxGxD, rotation, config, attend, recur, own)
    last[kind.mixer] = new
    stored += [] if kind.reuses else [new]
  return _final_norm(params, config, x_RxGxD), cache.advance(stored)


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
  run = _full_block(config, positions_BxL, mixers)

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
  return _final_norm(params, config, x_BxLxD)


def masked(config: ModelConfig, positions_BxL, mask_BxLxL):
  """Attention over whole rows under a mask [B, L, L] and the block's window: (q, k, v, window, sinks) -> [B, L, H, K]."""
  queries, keys = positions_BxL[:, :, None], positions_BxL[:, None, :]
  seen = lambda window: positions.within_window(mask_BxLxL, queries, keys, window)
  return lambda q, k, v, window, sinks: attention.attention(q, k, v, seen(window), config, sinks)


def _full_block(config, positions_BxL, mixers):
  """A block over whole rows: (x, its parameters, (`positions.Block`, its own input), kept, kind) -> (x, carried, router)."""
  rotations = positions.rope_rotations(config, positions_BxL)

  def run(x_BxLxD, layer, options, kept, *, kind):
    block, own = options

    def attend(q, k, v, sinks):
      k, v = kept[kind.mixer] if kind.reuses else (k, v)
      return mixers.attend(q, k, v, block.window, sinks), (k, v)

    rotation = positions.block_rotation(rotations, block, kind)
    return layers.block(layer, x_BxLxD, rotation, config, attend, mixers.recur, own)

  return run


def embed(params, config: ModelConfig, tokens):
  """The residual stream before the first block: [..., D]."""
  embedded = at_least_float32(params["embedding"][tokens])
  embedded = embedded if config.embedding_scale == 1 else embedded * config.embedding_scale
  return sharding.constrain_rows(embedded)


def _final_norm(params, config, x):
  normed = layers.rms_norm(x, params["final_norm"], config.norm_epsilon, config.norm_offset)
  return normed if config.logit_divisor == 1 else normed / config.logit_divisor
