"""Selects the implementation of sums over the vocabulary, and runs a kernel on a mesh."""

import importlib

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from qempo_jax import sharding
from qempo_jax.errors import InputError
from qempo_jax.kernels import online_softmax
from qempo_jax.kernels.head import Head

TOKEN_STATS = ("auto", "xla", "pallas")
_KERNELS = {"tpu": "tpu", "gpu": "gpu", "cuda": "gpu"}


def chosen(requested: str, platform: str, hidden_TxD, unembedding_VxD, dtype) -> str:
  """The implementation, "xla", "tpu" or "gpu".

  "auto" selects the kernel on TPUs, for which its compilation is tested, and XLA elsewhere: the GPU's kernel has not
  been timed against it.

  Args:
    requested: one of `TOKEN_STATS`.
    platform: platform of the devices.
    hidden_TxD: the hidden states.
    unembedding_VxD: the output projection.
    dtype: dtype of the product's operands.

  Raises:
    InputError: the kernel is requested, and cannot compute this.
  """
  if requested not in TOKEN_STATS:
    raise InputError(f"compute.token_stats={requested!r} is not one of {', '.join(TOKEN_STATS)}")
  if requested == "xla" or (requested == "auto" and platform != "tpu"):
    return "xla"
  reason = _obstacle(platform, hidden_TxD, unembedding_VxD, dtype)
  if reason and requested == "pallas":
    raise InputError(f"compute.token_stats=pallas {reason}; use auto or xla")
  return "xla" if reason else _KERNELS[platform]


def kernel_sums(head: Head, hidden_TxD, unembedding_VxD, targets_T, temperature) -> online_softmax.Sums:
  """Sums of every token over its whole vocabulary, each [T, 1], by the head's kernel.

  On the mesh of `sharding.on_mesh`, each device of the tensor axis runs it on its own rows of the unembedding; only
  four numbers a token cross the links.
  """
  run = importlib.import_module(f"qempo_jax.kernels.{head.kernel}").sums
  vocab_size = unembedding_VxD.shape[0]
  parts = sharding.head_shards()
  parts = parts if vocab_size % parts == 0 else 1

  def part(firsts, hidden_TxD, rows_VxD, counted_V, targets_T, temperature):
    return run(head, hidden_TxD, rows_VxD, counted_V, targets_T - firsts[0], temperature)

  along = P("tensor") if parts > 1 else P()
  if axes := sharding.split_axes():
    part = jax.shard_map(
      part, in_specs=(along, P(), along, along, P(), P()), out_specs=along, axis_names=axes, check_vma=False
    )
  firsts = jnp.arange(parts, dtype=jnp.int32) * (vocab_size // parts)
  counted = jnp.asarray(head.counted(vocab_size), jnp.int32)
  return online_softmax.merge(part(firsts, hidden_TxD, unembedding_VxD, counted, targets_T, temperature))


def _obstacle(platform: str, hidden_TxD, unembedding_VxD, dtype) -> str | None:
  """Reason why the platform's kernel cannot compute this; None if it can."""
  if platform not in _KERNELS:
    return f"needs a TPU or an NVIDIA GPU, and this is a {platform}"
  if jax.sharding.get_abstract_mesh().empty and jax.device_count() > 1:
    return f"must know the mesh of its {jax.device_count()} devices: trace it within sharding.on_mesh"
  if jnp.result_type(hidden_TxD, unembedding_VxD, dtype) == jnp.float64:
    return "computes in float32 at most, and this is float64"
  if platform == "tpu":
    from qempo_jax.kernels import tpu

    return tpu.obstacle(hidden_TxD.shape[1], unembedding_VxD.dtype, dtype)
  return None
