"""Sizes of arrays in a traced function."""

import math

import jax
from jax.extend import core


def largest(function, *arguments) -> int:
  """Bytes of the largest array that a function makes, by its jaxpr: those of loops and kernels' operands included.

  Args:
    function: traced, never run.
    *arguments: abstract arrays.
  """
  return _largest(jax.make_jaxpr(function)(*arguments).jaxpr)


def _largest(jaxpr) -> int:
  found = 0
  for equation in jaxpr.eqns:
    sizes = [
      math.prod(out.aval.shape) * out.aval.dtype.itemsize for out in equation.outvars if hasattr(out.aval, "shape")
    ]
    # Blocks of a kernel lie in the memory of a core.
    inner = [] if equation.primitive.name == "pallas_call" else core.jaxprs_in_params(equation.params)
    found = max([found, *sizes, *map(_largest, inner)])
  return found
