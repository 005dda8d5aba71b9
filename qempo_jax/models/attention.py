"""Attention over whole rows, by one of several implementations with equal results up to rounding.

  xla      an einsum over grouped heads, float32: every device, every option
  cudnn    cuDNN's fused kernel on NVIDIA GPUs, in half precision: no soft-cap of scores
  splash   the Pallas kernel for TPUs (sparse flash attention): rows of a multiple of 128 tokens. On a mesh each device
           runs it on its own rows and heads

All take the same mask, so that packed rows, padding and windows have one meaning. Decoding with a cache has
its own einsum (`kv_cache`). Shape letters as in `layers`.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from qempo_jax import sharding
from qempo_jax.errors import InputError
from qempo_jax.models import layers

SPLASH_BLOCK = 128
_CUDNN_WIDTH = 128  # Widest head that every GPU generation supports.


def attention(q_BxLxHxK, k_BxLxJxK, v_BxLxJxK, mask_BxLxL, config):
  """softmax(cap(scale q k')) v over masked keys, by the implementation named in `config.attention`.

  Args:
    q_BxLxHxK: queries.
    k_BxLxJxK: keys.
    v_BxLxJxK: values.
    mask_BxLxL: True if a query attends to a key.
    config: the decoder's config: scale and soft-cap of the scores, implementation, compute dtype.

  Returns:
    [B, L, H, K] in v's dtype; arbitrary but finite for a query without keys.

  Raises:
    InputError: the named implementation cannot compute this; "auto" selects one that can.
  """
  length, width = q_BxLxHxK.shape[1], q_BxLxHxK.shape[3]
  arrays = (q_BxLxHxK, k_BxLxJxK, v_BxLxJxK, mask_BxLxL, config)
  match chosen(config, length, width, sharding.platform(), obstacle_to_splitting(q_BxLxHxK, k_BxLxJxK)):
    case "cudnn":
      return cudnn(*arrays)
    case "splash":
      return splash(*arrays)
  return layers.attention(*arrays)


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
    "splash": _splash_obstacle(length, platform, obstacle),
  }
  if config.attention == "auto":
    preferred = {"gpu": "cudnn", "cuda": "cudnn", "tpu": "splash"}.get(platform, "xla")
    return "xla" if obstacles.get(preferred) else preferred
  if reason := obstacles.get(config.attention):
    raise InputError(f"compute.attention={config.attention} {reason}; use auto or xla")
  return config.attention


def cudnn(q_BxLxHxK, k_BxLxJxK, v_BxLxJxK, mask_BxLxL, config):
  """Attention by cuDNN (`jax.nn.dot_product_attention`), operands rounded to the compute dtype; see `attention`."""
  low = lambda x: x.astype(config.compute_dtype)
  attended = jax.nn.dot_product_attention(
    low(q_BxLxHxK),
    low(k_BxLxJxK),
    low(v_BxLxJxK),
    mask=mask_BxLxL[:, None],
    scale=config.attention_scale,
    implementation="cudnn",
  )
  return attended.astype(v_BxLxJxK.dtype)


def splash(q_BxLxHxK, k_BxLxJxK, v_BxLxJxK, mask_BxLxL, config, *, interpret=False):
  """Attention by the TPU kernel, with a mask per row that all heads share; see `attention`.

  On the mesh of `sharding.on_mesh`, rows are sharded over (data, fsdp), heads over tensor and queries over sequence;
  all must divide evenly.

  Args:
    q_BxLxHxK: queries.
    k_BxLxJxK: keys.
    v_BxLxJxK: values.
    mask_BxLxL: True if a query attends to a key.
    config: the decoder's config.
    interpret: run the kernel in interpreter mode, on any device.

  Returns:
    [B, L, H, K].
  """
  tokens = sharding.SEQUENCE if sharding.sequence_shards() > 1 else None
  run = functools.partial(_splash, config=config, axis=tokens, interpret=interpret)
  if sharding.row_shards() * sharding.head_shards() * sharding.sequence_shards() > 1:
    queries, keys = P(sharding.ROWS, tokens, "tensor"), P(sharding.ROWS, None, "tensor")
    specs = (queries, keys, keys, P(sharding.ROWS, tokens))
    run = jax.shard_map(run, in_specs=specs, out_specs=queries, check_vma=False)
  return run(q_BxLxHxK, k_BxLxJxK, v_BxLxJxK, mask_BxLxL)


def _splash(q_BxLxHxK, k_BxLxJxK, v_BxLxJxK, mask_BxLxL, *, config, axis, interpret):
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels

  sizes = dict.fromkeys(
    (
      "block_q",
      "block_kv",
      "block_kv_compute",
      "block_q_dkv",
      "block_kv_dkv",
      "block_kv_dkv_compute",
      "block_q_dq",
      "block_kv_dq",
    ),
    SPLASH_BLOCK,
  )
  # A query without keys attends to itself: the kernel divides by its sum of weights.
  keyless_BxLx1 = ~jnp.any(mask_BxLxL, axis=-1, keepdims=True)
  first = jax.lax.axis_index(axis) * mask_BxLxL.shape[1] if axis else 0
  itself = first + jnp.arange(mask_BxLxL.shape[1])[:, None] == jnp.arange(mask_BxLxL.shape[2])
  mask_BxLxL = mask_BxLxL | (keyless_BxLx1 & itself)
  q_BxLxJxRxK = layers.group_heads(q_BxLxHxK, k_BxLxJxK.shape[2]) * config.attention_scale

  def row(q_LxJxRxK, k_LxJxK, v_LxJxK, mask_LxL):
    kernel = kernels.make_splash_mha(
      mask_LxL[None],
      block_sizes=kernels.BlockSizes(**sizes),
      attn_logits_soft_cap=config.attention_softcap,
      head_shards=1,
      q_seq_shards=1,
      interpret=interpret,
    )
    # The kernel branches in Python on a property of its masks that is traced under jit.
    for name in ("fwd_mask_info", "dq_mask_info", "dkv_mask_info"):
      setattr(kernel, name, getattr(kernel, name)._replace(is_dynamic_mask=True))
    one = lambda q_LxK, k_LxK, v_LxK: kernel(q_LxK[None], k_LxK[None], v_LxK[None])[0]
    shared = jax.vmap(one, in_axes=(1, None, None), out_axes=1)  # The query heads of a key head.
    return jax.vmap(shared, in_axes=(1, 1, 1), out_axes=1)(q_LxJxRxK, k_LxJxK, v_LxJxK)

  attended = jax.lax.map(lambda arrays: row(*arrays), (q_BxLxJxRxK, k_BxLxJxK, v_BxLxJxK, mask_BxLxL))
  return attended.reshape(q_BxLxHxK.shape).astype(v_BxLxJxK.dtype)


def _cudnn_obstacle(config, length, width, platform) -> str | None:
  if platform not in ("gpu", "cuda"):
    return f"needs an NVIDIA GPU, and this is a {platform}"
  if (parts := sharding.sequence_shards()) > 1:
    return f"takes whole rows, and compute.mesh splits them into {parts} parts"
  if config.attention_softcap is not None:
    return f"has no soft-cap of scores, and this model's attention_softcap is {config.attention_softcap}"
  if config.compute_dtype not in ("bfloat16", "float16"):
    return f"computes in half precision, and compute.dtype is {config.compute_dtype}"
  if width > _CUDNN_WIDTH or width % 8:
    return f"needs heads of a multiple of 8 up to {_CUDNN_WIDTH}, and this model's head_dim is {width}"
  if length % 2:
    return f"needs rows of an even number of tokens, and these have {length}; make compute.bucket even"
  return None


def _splash_obstacle(length, platform, parts) -> str | None:
  if platform != "tpu":
    return f"needs a TPU, and this is a {platform}"
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
