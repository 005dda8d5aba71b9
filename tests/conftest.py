"""Shared fixtures: eight fake devices, a compilation cache, and double precision on request."""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest


@pytest.fixture
def x64():
  """Runs one test in double precision."""
  with jax.enable_x64(True):
    yield
