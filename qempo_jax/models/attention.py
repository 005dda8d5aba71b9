"""Attention over whole rows, by one of several implementations with equal results up to rounding.

  xla      an einsum over grouped heads, float32: every device, every option
  cudnn    cuDNN's fused kernel on NVIDIA GPUs, in half precision: no soft-cap of scores, no sinks
  splash   the Pallas kernel for TPUs (sparse flash attention): rows of a multiple of 128 tokens, no sinks. On a mesh
           each device runs it on its own rows and heads

All take the same mask, so that packed rows, padding and windows have one meaning. `CAUSAL` has the two kernels without a
mask, for plain sequences. Decoding with a cache has its own einsum (`kv_cache`). Shape letters as in `layers`.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from qempo_jax import sharding
from qempo_jax.errors import InputError
from qempo_jax.models import layers

SPLASH_BLOCK = 128
_CAUSAL_BLOCK = 512  # Of long plain sequences.
_CUDNN_WIDTH = 128  # Widest head that every GPU generation supports.
_NO_SINKS = "has no attention sinks, and this model's heads have them"


def attention(q_BxLxHxK, k_BxLxJxK, v_BxLxJxK, mask_BxLxL, config, sinks_H=None):
  """softmax(cap(scale q k')) v over masked keys, by the implementation named in `config.attention`.

  Args:
    q_BxLxHxK: queries.
    k_BxLxJxK: keys.
    v_BxLxJxK: values.
    mask_BxLxL: True if a query attends to a key.
    config: the decoder's config: scale and soft-cap of the scores, implementation, compute dtype.
    sinks_H: the heads' sinks, or None.

  Returns:
    [B, L, H, K] in v's dtype; arbitrary but finite for a query without keys.

  Raises:
    InputError: the named implementation cannot compute this; "auto" selects one that can.
  """
  length, width = q_BxLxHxK.shape[1], q_BxLxHxK.shape[3]
  qkv = sharding.for_attention(q_BxLxHxK, k_BxLxJxK, v_BxLxJxK)
  match chosen(config, length, width, sharding.platform(), obstacle_to_splitting(q_BxLxHxK, k_BxLxJxK)):
    case "cudnn":
      return cudnn(*qkv, mask_BxLxL, config)
    case "splash":
      return splash(*qkv, lambda mask, _: mask, mask_BxLxL, (), config)
  return layers.attention(*qkv, mask_BxLxL, config, sinks_H)


def chosen(config, length: int, width: int, platform: str, obstacle: str | None = None) -> str:
  """Implementation for rows of `length` tokens and heads of `width`, on devices of a platform.

  Args:
    config: the decoder's config, with the name of an implementation or "auto".
    length: tokens of a row.
    width: width of a head.
    platform: "cpu", "gpu" or "tpu".
    obstacle: reason why rows and heads cannot be sharded by hand, or None.

  Raises:
    InputError: the named implementation cannot compute this.
  """
  obstacles = {
    "cudnn": _cudnn_obstacle(config, length, width, platform),
    "splash": _splash_obstacle(config, length, platform, obstacle),
  }
  if config.attention == "auto":
    preferred = {"gpu": "cudnn", "cuda": "cudnn", "tpu": "splash"}.get(platform, "xla")
    return "xla" if obstacles.get(preferred) else preferred
  if reason := obstacles.get(config.attention):
    raise InputError(f"compute.attention={config.attention} {reason}; use auto or xla")
  return config.attention


def cudnn(q_BxLxHxK, k_BxLxJxK, v_BxLxJxK, mask_BxLxL, config):
  """Attention by cuDNN (`jax.nn.dot_product_attention`), operands rounded to the compute dtype; see `attention`."""
  return _cudnn(q_BxLxHxK, k_BxLxJxK, v_BxLxJxK, config, mask=mask_BxLxL[:, None])


def _causal_cudnn(q_BxLxHxK, k_BxLxJxK, v_BxLxJxK, config, window):
  near = None if window is None else (window - 1, 0)
  return _cudnn(q_BxLxHxK, k_BxLxJxK, v_BxLxJxK, config, is_causal=True, local_window_size=near)


def _cudnn(q, k, v, config, **options):
  low = [x.astype(config.compute_dtype) for x in (q, k, v)]
  scale = config.attention_scale
  return jax.nn.dot_product_attention(*low, scale=scale, implementation="cudnn", **options).astype(v.dtype)


def splash(q_BxLxHxK, k_BxLxJxK, v_BxLxJxK, seen, queries, keys, config, *, interpret=False):
  """Attention by the TPU kernel, with a mask per row that all heads share; see `attention`.

  The masks exist one row at a time, also in the gradient. On the mesh of `sharding.on_mesh`, rows are sharded over
  (data, fsdp), heads over tensor and queries over sequence; all must divide evenly.

  Args:
    q_BxLxHxK: queries.
    k_BxLxJxK: keys.
    v_BxLxJxK: values.
    seen: (queries, keys) of one row -> the mask [L, L], True if a query attends to a key.
    queries: pytree of arrays [B, L, ...] about the queries.
    keys: the same about the keys.
    config: the decoder's config.
    interpret: run the kernel in interpreter mode, on any device.

  Returns:
    [B, L, H, K].
  """
  tokens = sharding.SEQUENCE if sharding.sequence_shards() > 1 else None
  run = functools.partial(_splash, seen=seen, config=config, axis=tokens, interpret=interpret)
  if sharding.row_shards() * sharding.head_shards() * sharding.sequence_shards() > 1:
    split, whole = P(sharding.ROWS, tokens, "tensor"), P(sharding.ROWS, None, "tensor")
    specs = (split, whole, whole, P(sharding.ROWS, tokens), P(sharding.ROWS))
    run = jax.shard_map(run, in_specs=specs, out_specs=split, check_vma=False)
  return run(q_BxLxHxK, k_BxLxJxK, v_BxLxJxK, queries, keys)


def _splash(q_BxLxHxK, k_BxLxJxK, v_BxLxJxK, queries, keys, *, seen, config, axis, interpret):
  def row(q_LxHxK, k_LxJxK, v_LxJxK, queries, keys):
    mask_LxL = seen(queries, keys)
    # A query without keys attends to itself: the kernel divides by its sum of weights.
    first = jax.lax.axis_index(axis) * mask_LxL.shape[0] if axis else 0
    itself = first + jnp.arange(mask_LxL.shape[0])[:, None] == jnp.arange(mask_LxL.shape[1])
    mask_LxL = mask_LxL | (~jnp.any(mask_LxL, axis=-1, keepdims=True) & itself)
    kernel = _splash_kernel(mask_LxL[None], SPLASH_BLOCK, config, interpret)
    # The kernel branches in Python on a property of its masks that is traced under jit.
    for name in ("fwd_mask_info", "dq_mask_info", "dkv_mask_info"):
      setattr(kernel, name, getattr(kernel, name)._replace(is_dynamic_mask=True))
    return _by_heads(kernel, q_LxHxK, k_LxJxK, v_LxJxK, config)

  again = jax.checkpoint(row, policy=jax.checkpoint_policies.save_only_these_names(_KEPT))
  return jax.lax.map(lambda arrays: again(*arrays), (q_BxLxHxK, k_BxLxJxK, v_BxLxJxK, queries, keys))


def _causal_splash(q_BxLxHxK, k_BxLxJxK, v_BxLxJxK, config, window, *, interpret=False):
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

  # Larger blocks have fewer steps, and padding at the end is seen by nothing.
  length = q_BxLxHxK.shape[1]
  block = SPLASH_BLOCK if length < 4 * _CAUSAL_BLOCK else _CAUSAL_BLOCK
  shape, missing = (length + -length % block,) * 2, -length % block
  pad = lambda x: jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0)))
  mask = masks.CausalMask(shape) if window is None else masks.LocalMask(shape, (window - 1, 0), 0)
  kernel = _splash_kernel(masks.MultiHeadMask([mask]), block, config, interpret)
  arrays = map(pad, (q_BxLxHxK, k_BxLxJxK, v_BxLxJxK))
  return jax.vmap(lambda *row: _by_heads(kernel, *row, config))(*arrays)[:, :length]


# Causal attention of plain sequences, (q, k, v, config, window or None) -> [B, L, H, K], by name.
CAUSAL = {"cudnn": _causal_cudnn, "splash": _causal_splash}
_KEPT = "splash_residuals"  # Results of the splash kernel, which its gradient needs.


def _splash_kernel(mask, block, config, interpret):
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels

  names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
  return kernels.make_splash_mha(
    mask,
    block_sizes=kernels.BlockSizes(**{f"block_{name}": block for name in names}),
    attn_logits_soft_cap=config.attention_softcap,
    head_shards=1,
    q_seq_shards=1,
    residual_checkpoint_name=_KEPT,
    interpret=interpret,
  )


def _by_heads(kernel, q_LxHxK, k_LxJxK, v_LxJxK, config):
  """The kernel over one row's heads: [L, H, K]."""
  length, heads, width = q_LxHxK.shape
  q_LxJxrxK = q_LxHxK.reshape(length, k_LxJxK.shape[1], -1, width) * config.attention_scale
  one = lambda q_LxK, k_LxK, v_LxK: kernel(q_LxK[None], k_LxK[None], v_LxK[None])[0]
  shared = jax.vmap(one, in_axes=(1, None, None), out_axes=1)  # The query heads of a key head.
  attended = jax.vmap(shared, in_axes=(1, 1, 1), out_axes=1)(q_LxJxrxK, k_LxJxK, v_LxJxK)
  return attended.reshape(length, heads, width).astype(v_LxJxK.dtype)


def _cudnn_obstacle(config, length, width, platform) -> str | None:
  if platform not in ("gpu", "cuda"):
    return f"needs an NVIDIA GPU, and this is a {platform}"
  if (parts := sharding.sequence_shards()) > 1:
    return f"takes whole rows, and compute.mesh splits them into {parts} parts"
  if config.attention_sinks:
    return _NO_SINKS
  if config.attention_softcap is not None:
    return f"has no soft-cap of scores, and this model's attention_softcap is {config.attention_softcap}"
  if config.compute_dtype not in ("bfloat16", "float16"):
    return f"computes in half precision, and compute.dtype is {config.compute_dtype}"
  if width > _CUDNN_WIDTH or width % 8:
    return f"needs heads of a multiple of 8 up to {_CUDNN_WIDTH}, and this model's head_dim is {width}"
  if length % 2:
    return f"needs rows of an even number of tokens, and these have {length}; make compute.bucket even"
  return None


def _splash_obstacle(config, length, platform, parts) -> str | None:
  if platform != "tpu":
    return f"needs a TPU, and this is a {platform}"
  if config.attention_sinks:
    return _NO_SINKS
  if parts:
    return parts
  if length % (block := SPLASH_BLOCK * sharding.sequence_shards()):
    return f"needs rows of a multiple of {block} tokens, and these have {length}; set compute.bucket"
  return None


def obstacle_to_splitting(q_BxLxHxK, k_BxLxJxK) -> str | None:
  """Reason why rows and heads cannot be sharded over the devices by hand; None if they can."""
  rows, heads = sharding.row_shards(), sharding.head_shards()
  if rows * heads == 1 and jax.sharding.get_abstract_mesh().empty and jax.device_count() > 1:
    return f"must know the mesh of its {jax.device_count()} devices: trace it within sharding.on_mesh"
  if q_BxLxHxK.shape[0] % rows:
    return f"needs rows that data x fsdp = {rows} divides, and these are {q_BxLxHxK.shape[0]}"
  if k_BxLxJxK.shape[2] % heads:
    return f"needs key heads that tensor = {heads} divides, and these are {k_BxLxJxK.shape[2]}"
  return None
