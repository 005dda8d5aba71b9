"""A prompt's whole group of responses in one row, the prompt computed once."""

from collections.abc import Sequence

import numpy as np

from qempo_jax.types import PackedGroups


def round_up(value: int, multiple: int) -> int:
  """The smallest multiple that is not below the value."""
  return -(-value // multiple) * multiple


def pack_groups(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[Sequence[int]]],
    *,
    bucket: int,
) -> PackedGroups:
  """Packs prompts and their responses; NumPy, on the host.

  Rows, and the lists of their response tokens, get one common length, a multiple of `bucket`, so that few
  shapes are ever compiled.

  Args:
    prompts: P token sequences, none empty.
    responses: P groups of G token sequences each; an empty response takes no room and scores 0.
    bucket: tokens.

  Returns:
    PackedGroups of NumPy arrays.
  """
  group_size = len(responses[0])
  fed = [len(p) + sum(max(len(r) - 1, 0) for r in group) for p, group in zip(prompts, responses)]
  scored = [sum(len(r) for r in group) for group in responses]
  shape = (len(prompts), round_up(max(fed + scored), bucket))
  tokens, positions, source, target, time = (np.zeros(shape, np.int32) for _ in range(5))
  segments, sample = np.full(shape, -1, np.int32), np.full(shape, group_size, np.int32)

  for row, (prompt, group) in enumerate(zip(prompts, responses)):
    start = len(prompt)
    tokens[row, :start], positions[row, :start], segments[row, :start] = prompt, np.arange(start), 0
    at, slot = start, 0
    for index, response in enumerate(group):
      length = len(response)
      if not length:
        continue
      stop, scores = at + length - 1, slice(slot, slot + length)
      tokens[row, at:stop] = response[:-1]
      positions[row, at:stop] = start + np.arange(length - 1)
      segments[row, at:stop] = index + 1
      source[row, scores] = np.concatenate([[start - 1], np.arange(at, stop)])
      target[row, scores], time[row, scores] = response, np.arange(length)
      sample[row, scores] = index
      at, slot = stop, slot + length
  return PackedGroups(tokens, positions, segments, source, target, sample, time)
