"""A decoder as pure functions over stacked parameters.

Parameters are a nested dict. Every leaf under "layers" has the layers as its first axis, so that one `lax.scan` runs
them all and compile time does not grow with depth.
"""

import jax
import jax.numpy as jnp

from qempo_jax import sharding
from qempo_jax.linear import linear
from qempo_jax.masking import at_least_float32
from qempo_jax.models import attention
from qempo_jax.models import experts
from qempo_jax.models import layers
from qempo_jax.models import positions
from qempo_jax.models import shared_prompt
from qempo_jax.models.config import EXPERTS
from qempo_jax.models.config import ModelConfig
from qempo_jax.models.kv_cache import KVCache
from qempo_jax.token_stats import mask_columns
from qempo_jax.token_stats import softcap
from qempo_jax.types import PackedGroups


def param_shapes(config: ModelConfig):
  """The parameter tree with each leaf's shape, which init and loading follow."""
  n, d, f = config.num_layers, config.hidden_size, config.intermediate_size
  h, j, k = config.num_heads, config.num_kv_heads, config.head_dim
  blocks = {
    "query": (n, d, h, k),
    "key": (n, d, j, k),
    "value": (n, d, j, k),
    "output": (n, h, k, d),
  }
  if e := config.num_experts:
    blocks |= {"router": (n, d, e), "expert_gate": (n, e, d, f), "expert_up": (n, e, d, f), "expert_down": (n, e, f, d)}
  else:
    blocks |= {"gate": (n, d, f), "up": (n, d, f), "down": (n, f, d)}
  outputs = {"query": h * k, "key": j * k, "value": j * k, "output": d, "gate": f, "up": f, "down": d}
  outputs |= {"router": e, "expert_gate": f, "expert_up": f, "expert_down": d}
  bias = lambda name: (n, e, outputs[name]) if name in EXPERTS else (n, outputs[name])
  blocks |= {f"{name}_bias": bias(name) for name in config.biases}
  if config.norm_placement != "post":
    blocks |= {"attention_norm": (n, d), "feed_forward_norm": (n, d)}
  if config.norm_placement != "pre":
    blocks |= {"attention_post_norm": (n, d), "feed_forward_post_norm": (n, d)}
  if config.qk_norm == "head":
    blocks |= {"query_norm": (n, k), "key_norm": (n, k)}
  if config.qk_norm == "width":
    blocks |= {"query_norm": (n, h * k), "key_norm": (n, j * k)}
  if config.attention_sinks:
    blocks |= {"sinks": (n, h)}
  shapes = {"embedding": (config.vocab_size, d), "layers": blocks, "final_norm": (d,)}
  if not config.tie_embeddings:
    shapes["unembedding"] = (config.vocab_size, d)
  return shapes


def init(rng, config: ModelConfig, *, stddev=0.02, dtype=jnp.float32):
  """Random parameters: norms at one, biases at zero, every matrix normal with the given standard deviation."""
  shapes = param_shapes(config)
  leaves, treedef = jax.tree.flatten_with_path(shapes, is_leaf=lambda x: isinstance(x, tuple))
  keys = jax.random.split(rng, len(leaves))

  def leaf(path, shape, key):
    if "norm" in path[-1].key:
      return jnp.full(shape, 1 - config.norm_offset, dtype)
    if "bias" in path[-1].key:
      return jnp.zeros(shape, dtype)
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
  blocks = [jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"]) for i in range(config.num_layers)]
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
  return _forward(params, config, tokens_BxL, positions_BxL, masked(config, positions_BxL, mask_BxLxL), remat)


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
  attend = shared_prompt.attender(packed, config)
  x_PxRxD = embed(params, config, packed.tokens)
  x_PxRxD, router = _run(params["layers"], config, x_PxRxD, packed.positions, attend, remat=remat)
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
    (hidden [P, D] of each prompt's last token, keys [N, P, L, J, K], values [N, P, L, J, K]).
  """
  positions_PxL = jnp.cumsum(mask_PxL, axis=1) - 1
  mask_PxLxL = causal_mask(positions_PxL, mask_PxL)
  run = _full_block(config, positions_PxL, masked(config, positions_PxL, mask_PxLxL))
  x_PxLxD, (keys, values) = jax.lax.scan(
    lambda x_PxLxD, layer_and_block: run(x_PxLxD, *layer_and_block)[:2],
    embed(params, config, tokens_PxL),
    (params["layers"], positions.stacked_blocks(config)),
  )
  length = tokens_PxL.shape[1]
  last_P = length - 1 - jnp.argmax(mask_PxL[:, ::-1], axis=1)
  hidden_PxD = jnp.take_along_axis(x_PxLxD, last_P[:, None, None], axis=1)[:, 0]
  return _final_norm(params, config, hidden_PxD), keys, values


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
  entry, stored = cache.clock % cache.ring, []
  x_RxGxD = embed(params, config, tokens_RxG)
  for layer, block, layer_cache in zip(params["layers"], blocks, cache.layers):

    def attend(q, k, v, sinks, layer_cache=layer_cache, masks=masks[block.window]):
      return layer_cache.attend(q, k, v, entry, *masks, config, sinks)

    x_RxGxD, new, _ = layers.block(layer, x_RxGxD, positions.block_rotation(rotations, block), config, attend)
    stored.append(new)
  return _final_norm(params, config, x_RxGxD), cache.advance(stored)


def causal_mask(positions_BxL, valid_BxL):
  """Mask [B, L, L] by which each valid token attends to the valid tokens at or before its own position."""
  earlier = positions_BxL[:, None, :] <= positions_BxL[:, :, None]
  return earlier & valid_BxL[:, None, :] & valid_BxL[:, :, None]


def run_blocks(blocks, config: ModelConfig, x_BxLxD, positions_BxL, attend, *, first: int = 0, remat: bool):
  """Runs consecutive blocks of the decoder.

  Args:
    blocks: their parameters, stacked.
    config: the whole decoder's config.
    x_BxLxD: the residual stream before them.
    positions_BxL: rotary positions.
    attend: attention over whole rows, such as `masked`: (q, k, v, window, sinks) -> [B, L, H, K].
    first: index of the first of them in the decoder.
    remat: apply `config.remat` in the backward pass.

  Returns:
    The residual stream after them, [B, L, D].
  """
  return _run(blocks, config, x_BxLxD, positions_BxL, attend, first=first, remat=remat)[0]


def _run(blocks, config, x_BxLxD, positions_BxL, attend, *, first=0, remat):
  """`run_blocks`, with the routers' logits [N, B, L, E], None without experts."""
  run = _full_block(config, positions_BxL, attend)

  def body(x_BxLxD, layer_and_block):
    layer, block = layer_and_block
    x_BxLxD, _, router = run(x_BxLxD, sharding.constrain_params(layer, layer=True), block)
    return x_BxLxD, router

  count = len(jax.tree.leaves(blocks)[0])
  options = jax.tree.map(lambda leaf: leaf[first : first + count], positions.stacked_blocks(config))
  body = rematerialised(body, config.remat) if remat else body
  return jax.lax.scan(body, x_BxLxD, (blocks, options))


def _forward(params, config, tokens_BxL, positions_BxL, attend, remat):
  x_BxLxD = embed(params, config, tokens_BxL)
  return _final_norm(params, config, run_blocks(params["layers"], config, x_BxLxD, positions_BxL, attend, remat=remat))


def masked(config: ModelConfig, positions_BxL, mask_BxLxL):
  """Attention over whole rows under a mask [B, L, L] and the block's window: (q, k, v, window, sinks) -> [B, L, H, K]."""
  queries, keys = positions_BxL[:, :, None], positions_BxL[:, None, :]
  seen = lambda window: positions.within_window(mask_BxLxL, queries, keys, window)
  return lambda q, k, v, window, sinks: attention.attention(q, k, v, seen(window), config, sinks)


def _full_block(config, positions_BxL, attend):
  """A block over whole rows: (x, its parameters, its `positions.Block`) -> (x, (keys, values), router)."""
  rotations = positions.rope_rotations(config, positions_BxL)

  def run(x_BxLxD, layer, block):
    def attend_and_keep(q, k, v, sinks):
      return attend(q, k, v, block.window, sinks), (k, v)

    return layers.block(layer, x_BxLxD, positions.block_rotation(rotations, block), config, attend_and_keep)

  return run


def embed(params, config: ModelConfig, tokens):
  """The residual stream before the first block: [..., D]."""
  embedded = at_least_float32(params["embedding"][tokens])
  embedded = embedded if config.embedding_scale == 1 else embedded * config.embedding_scale
  return sharding.constrain_rows(embedded)


def _final_norm(params, config, x):
  normed = layers.rms_norm(x, params["final_norm"], config.norm_epsilon, config.norm_offset)
  return normed if config.logit_divisor == 1 else normed / config.logit_divisor
