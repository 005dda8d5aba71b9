"""Shared fixtures: eight fake devices, a compilation cache, and double precision on request."""

import os

# Eight fake devices share a few cores: one that waits long for the others is slow, not stuck.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_cpu_collective_call_warn_stuck_timeout_seconds=120"
    " --xla_cpu_collective_call_terminate_timeout_seconds=600",
)
# A device that waits in a collective keeps a thread: with fewer threads than waiters none would get on.
os.environ.setdefault("PJRT_NPROC", "16")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest


@pytest.fixture
def x64():
  """Runs one test in double precision."""
  with jax.enable_x64(True):
    yield
