"""A prompt's whole group of responses in one row, the prompt computed once."""

from collections.abc import Sequence

import numpy as np

from qempo_jax.types import PackedGroups
from qempo_jax.types import RowLayout


def round_up(value: int, multiple: int) -> int:
  """The smallest multiple that is not below the value."""
  return -(-value // multiple) * multiple


def row_layout(prompt: int, response: int, *, bucket: int) -> RowLayout:
  """The layout for prompts of up to `prompt` tokens and responses of up to `response` tokens.

  Few layouts occur: the prompt's places are a multiple of `bucket`, the reach is a power of two of them.
  """
  reach = bucket
  while reach < response - 1:  # the last token is never fed
    reach *= 2
  return RowLayout(round_up(prompt, bucket), bucket, reach)


def pack_groups(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[Sequence[int]]],
    *,
    bucket: int,
) -> PackedGroups:
  """Packs prompts and their responses; NumPy, on the host.

  The places of the prompts, and those of the fed tokens of their responses, are multiples of `bucket`, so that few
  shapes are ever compiled. There are G more places for scored tokens than for fed ones, enough for any lengths.

  Args:
    prompts: P token sequences, none empty.
    responses: P groups of G token sequences each; an empty response takes no room and scores 0.
    bucket: tokens.

  Returns:
    PackedGroups of NumPy arrays.
  """
  group_size = len(responses[0])
  fed = [sum(max(len(r) - 1, 0) for r in group) for group in responses]
  longest = max(len(r) for group in responses for r in group)
  layout = row_layout(max(map(len, prompts)), longest, bucket=bucket)
  places = round_up(max(*fed, 1), bucket)
  row_shape, scored_shape = (len(prompts), layout.prompt + places), (len(prompts), places + group_size)
  tokens, positions = (np.zeros(row_shape, np.int32) for _ in range(2))
  segments = np.full(row_shape, -1, np.int32)
  source, target, time = (np.zeros(scored_shape, np.int32) for _ in range(3))
  sample = np.full(scored_shape, group_size, np.int32)

  for row, (prompt, group) in enumerate(zip(prompts, responses)):
    start = len(prompt)
    tokens[row, :start], positions[row, :start], segments[row, :start] = prompt, np.arange(start), 0
    at, slot = layout.prompt, 0
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
  return PackedGroups(tokens, positions, segments, source, target, sample, time, layout)
