"""Decoders with random weights, and the clock, memory and compile time of a jitted function."""

from collections.abc import Callable
import dataclasses
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from qempo_jax.models import lora
from qempo_jax.models import parameters
from qempo_jax.models import presets
from qempo_jax.models.config import ModelConfig

_TINY = {"0.5b": 1, "1.5b": 2, "8b": 3}  # Blocks of the stand-ins for a CPU.
_FULL = {"0.5b": "qwen2.5-0.5b", "1.5b": "qwen2.5-1.5b", "7b": "qwen2.5-7b", "8b": "llama-3.1-8b"}
NAMES = tuple(_FULL)


def config(name: str, *, tiny: bool, **options) -> ModelConfig:
  """The shape of a model by its size, or of its small stand-in, with compute options."""
  if tiny:
    shape = ModelConfig(512, 64, 128, _TINY.get(name, 2), 4, 2, 16, 1e4, 1e-5, name == "0.5b")
  else:
    shape = presets.get(_FULL[name])
  return dataclasses.replace(shape, **options)


def params(shape: ModelConfig, dtype: str):
  """Random parameters on the device, with logits of a standard deviation of about 1.5."""
  create = lambda key: parameters.init(key, shape, stddev=1.5 * shape.hidden_size**-0.5, dtype=jnp.dtype(dtype))
  return jax.block_until_ready(jax.jit(create)(jax.random.key(0)))


def adapters(shape: ModelConfig, base, rank: int):
  """Adapters of all matrices."""
  found = lora.LoraConfig(rank, 16.0)
  return jax.jit(lambda key: lora.init(key, base, found))(jax.random.key(1))


def compiled(function: Callable, *arguments, **options) -> tuple[Any, dict[str, float]]:
  """(compiled program, its tracing and compile seconds and the bytes it takes) of a function or a jitted one."""
  jitted = function if hasattr(function, "lower") else jax.jit(function)
  started = time.perf_counter()
  lowered = jitted.lower(*arguments, **options)
  traced = time.perf_counter()
  program = lowered.compile()
  found = {"trace_seconds": traced - started, "compile_seconds": time.perf_counter() - traced}
  memory = program.memory_analysis()
  if memory is not None:
    size = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    found["program_bytes"] = size + memory.temp_size_in_bytes
    found["temporary_bytes"] = memory.temp_size_in_bytes
  return program, found


def seconds(run: Callable[[], Any], *, repeats: int) -> float:
  """Median seconds of a call, results awaited, after one call that is not counted."""
  jax.block_until_ready(run())
  times = []
  for _ in range(repeats):
    started = time.perf_counter()
    jax.block_until_ready(run())
    times.append(time.perf_counter() - started)
  return statistics.median(times)


def peak_bytes(before: int | None = None) -> int | None:
  """Most device memory that this process has held.

  Args:
    before: the same at the start of a measurement.

  Returns:
    Bytes; None if the device does not report them, or if the peak was before that.
  """
  found = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
  return found if before is None or found is None or found > before else None
