"""Blocks of several kinds in stacked parameters.

A leaf under "layers" is stacked over the blocks that have it, in their order. Most leaves belong to all blocks; those of
attention, of heads of another size ("global_query", ...), of gated delta nets ("delta_query", ...) and of wider
feed-forward layers ("shared_gate", ...) belong to the blocks of their `Kind`. Within a block, "global_" and "shared_"
fall away.

A decoder is run period by period: the blocks of a period differ, and one `lax.scan` runs all periods. Where all blocks
are of one kind, a period is a block.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax

from qempo_jax.models.config import Kind
from qempo_jax.models.config import ModelConfig

_KEYS = ("key", "value", "key_norm", "key_bias", "value_bias")
_MIXERS = (*_KEYS, "query", "output", "query_norm", "query_bias", "output_bias", "sinks")
_FEED_FORWARD = ("gate", "up", "down")


def has(key: str, kind: Kind) -> bool:
  """True if blocks of the kind have the leaf."""
  name = plain(key)
  if name in _MIXERS and key != "shared_" + name:
    return kind.mixer == ("global" if key != name else "attention") and not (kind.reuses and name in _KEYS)
  if name in _FEED_FORWARD:
    return kind.wide == (key != name)
  return kind.mixer == "delta" or not key.startswith("delta_")


def plain(key: str) -> str:
  """A leaf's name within its block."""
  return key.removeprefix("global_").removeprefix("shared_")


def members(key: str, kinds: tuple[Kind, ...]) -> list[int]:
  """Indices of the blocks that have the leaf."""
  return [index for index, kind in enumerate(kinds) if has(key, kind)]


def one(blocks: dict[str, Any], kinds: tuple[Kind, ...], index: int) -> dict[str, Any]:
  """The parameters of one block."""
  own = {key: members(key, kinds).index(index) for key in blocks if has(key, kinds[index])}
  return {plain(key): jax.tree.map(lambda leaf, place=place: leaf[place], blocks[key]) for key, place in own.items()}


def part(blocks: dict[str, Any], kinds: tuple[Kind, ...], start: int, stop: int) -> dict[str, Any]:
  """The stacked parameters of the blocks from `start` to before `stop`; a leaf may be left with none."""

  def cut(key):
    first, last = (sum(index < end for index in members(key, kinds)) for end in (start, stop))
    return jax.tree.map(lambda leaf: leaf[first:last], blocks[key])

  return {key: cut(key) for key in blocks}


def count(blocks: dict[str, Any]) -> int:
  """Number of blocks; their norms are in all of them."""
  return max(leaf.shape[0] for leaf in jax.tree.leaves(blocks))


def run(step: Callable, x, blocks: dict[str, Any], config: ModelConfig, options, *, first: int = 0, wrap=lambda f: f):
  """Runs consecutive blocks.

  Args:
    step: (x, the block's parameters, its part of `options`, kept, kind=, keeps=) -> (x, out, (keys, values)), the last
      None unless `keeps`; `kept` is {mixer: (keys, values)} for blocks that reuse those of others, else empty.
    x: the residual stream before them.
    blocks: their parameters, stacked.
    config: the whole decoder's config.
    options: a pytree of arrays stacked over these blocks.
    first: index of the first of them in the decoder.
    wrap: applied to every block's function (x, parameters, options, kept), such as rematerialisation.

  Returns:
    (x after them, [(range of blocks, their outs stacked)] of all of them).
  """
  kinds = config.kinds[first : first + count(blocks)]
  outs, kept = [], {}
  for start, stop, keeps in _stretches(kinds):
    some = kinds[start:stop]
    whole = len(some) == len(kinds)
    few = blocks if whole else part(blocks, kinds, start, stop)
    few = {key: leaf for key, leaf in few.items() if members(key, some)}
    own = options if whole else jax.tree.map(lambda leaf, start=start, stop=stop: leaf[start:stop], options)
    size = len(some) if keeps else _period(some)
    functions = [wrap(functools.partial(step, kind=kind, keeps=keeps)) for kind in some[:size]]

    def body(x, inputs, functions=functions, some=some[:size], kept=kept):
      found, (layers, own) = [], inputs
      for index, function in enumerate(functions):
        layer = one(layers, some, index) if len(functions) > 1 else {plain(key): leaf for key, leaf in layers.items()}
        option = jax.tree.map(lambda leaf, index=index: leaf[index], own) if len(functions) > 1 else own
        x, *out = function(x, layer, option, kept)
        found.append(out)
      return x, found

    if size > 1:
      shape = len(some) // size, -1
      few, own = jax.tree.map(lambda leaf, shape=shape: leaf.reshape(*shape, *leaf.shape[1:]), (few, own))
    x, found = jax.lax.scan(body, x, (few, own))
    outs += [(range(start + index, stop, size), out) for index, (out, _) in enumerate(found)]
    if keeps:
      first_period = jax.tree.map(lambda leaf: leaf[0], [keys_values for _, keys_values in found])
      kept = {kind.mixer: keys_values for kind, keys_values in zip(some, first_period)}
  return x, outs


def _stretches(kinds) -> list[tuple[int, int, bool]]:
  """Consecutive ranges of blocks, and whether it is the one whose keys and values later ones reuse."""
  borrowers = [index for index, kind in enumerate(kinds) if kind.reuses]
  if not borrowers:
    return [(0, len(kinds), False)]
  stop = borrowers[0]
  last = lambda mixer: max(index for index in range(stop) if kinds[index].mixer == mixer)
  size = _period(kinds[:stop])
  start = min(last(kinds[index].mixer) for index in borrowers) // size * size  # What comes before are whole periods.
  ranges = [(0, start, False), (start, stop, True), (stop, len(kinds), False)]
  return [(first, end, keeps) for first, end, keeps in ranges if first < end]


def _period(kinds) -> int:
  """The least number of blocks after which the kinds repeat until the end."""
  return next(
    size
    for size in range(1, len(kinds) + 1)
    if len(kinds) % size == 0 and all(kind == kinds[index % size] for index, kind in enumerate(kinds))
  )
