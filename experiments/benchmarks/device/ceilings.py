"""Measured ceilings of the device (a bfloat16 product, a copy), its name and its memory."""

import pathlib
import platform

import jax
import jax.numpy as jnp

from experiments.benchmarks.device import models


def measure(*, what: str, size: int = 0, repeats: int = 5) -> dict:
  """FLOP or bytes a second of one operation, or the device's description.

  Args:
    what: "device", "product" or "copy".
    size: width of the square matrices, or numbers in the array.
    repeats: runs; the median counts.
  """
  if what == "device":
    return _device()
  if what == "product":
    times, key = 8, jax.random.key(0)
    a, b = (jax.random.normal(k, (size, size), jnp.bfloat16) / size**0.5 for k in jax.random.split(key))
    chain = jax.jit(lambda a, b: jax.lax.fori_loop(0, times, lambda _, x: x @ b, a))
    taken = models.seconds(lambda: chain(a, b), repeats=repeats) / times
    return {"seconds": taken, "flops": 2 * size**3 / taken}
  x = jnp.zeros((size,), jnp.float32)
  add = jax.jit(lambda x: x + 1)
  taken = models.seconds(lambda: add(x), repeats=repeats)
  return {"seconds": taken, "bytes_per_second": 8 * size / taken}


def _device() -> dict:
  device = jax.devices()[0]
  stats = device.memory_stats() or {}
  found = {
    "kind": device.device_kind,
    "platform": device.platform,
    "memory_limit": stats.get("bytes_limit"),
    "jax": jax.__version__,
    "python": platform.python_version(),
  }
  processor = pathlib.Path("/proc/cpuinfo")
  if device.platform == "cpu" and processor.exists():
    lines = processor.read_text(encoding="utf-8").splitlines()
    found["kind"] = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "cpu")
  return found
