"""Prompts with their whole groups of responses in rows, each prompt computed once."""

from collections.abc import Sequence

import numpy as np

from qempo_jax.errors import InputError
from qempo_jax.types import PackedGroups
from qempo_jax.types import RowLayout


def round_up(value: int, multiple: int) -> int:
  """The smallest multiple that is not below the value."""
  return -(-value // multiple) * multiple


def row_layout(prompt: int, response: int, *, bucket: int, prompts: int, responses: int) -> RowLayout:
  """The layout for prompts of up to `prompt` tokens a row and responses of up to `response` tokens each.

  Few layouts occur: the prompts' places are a multiple of `bucket`, the reach is a power of two of them.
  """
  reach = bucket
  while reach < response - 1:  # the last token is never fed
    reach *= 2
  return RowLayout(round_up(prompt, bucket), bucket, reach, prompts, responses)


def pack_groups(
  prompts: Sequence[Sequence[int]],
  responses: Sequence[Sequence[Sequence[int]]],
  *,
  bucket: int,
  prompts_per_row: int = 1,
) -> PackedGroups:
  """Packs prompts and their responses; NumPy, on the host.

  The places of a row's prompts, and those of the fed tokens of their responses, are multiples of `bucket`, so that few
  shapes are ever compiled. There are G more places a prompt for scored tokens than for fed ones, enough for any
  lengths.

  Args:
    prompts: P token sequences, none empty.
    responses: P groups of G token sequences each; an empty response takes no room and scores 0.
    bucket: tokens.
    prompts_per_row: k, which divides P; consecutive prompts share a row. Short groups of uneven lengths then leave less
      padding, and every response's scores take the places of the row's other prompts too, masked.

  Returns:
    PackedGroups of NumPy arrays.

  Raises:
    InputError: `prompts_per_row` does not divide the prompts.
  """
  if prompts_per_row < 1 or len(prompts) % prompts_per_row:
    raise InputError(f"prompts_per_row={prompts_per_row} does not divide the {len(prompts)} prompts; choose a divisor")
  per_row, group_size = prompts_per_row, len(responses[0])
  in_rows = lambda lengths: np.reshape(lengths, (-1, per_row)).sum(axis=1)
  fed = in_rows([sum(max(len(r) - 1, 0) for r in group) for group in responses])
  longest = max(len(r) for group in responses for r in group)
  prompt = max(in_rows([len(prompt) for prompt in prompts]))
  layout = row_layout(int(prompt), longest, bucket=bucket, prompts=per_row, responses=group_size)
  rows, places = len(prompts) // per_row, round_up(max(*fed, 1), bucket)
  row_shape, scored_shape = (rows, layout.prompt + places), (rows, places + per_row * group_size)
  tokens, positions = (np.zeros(row_shape, np.int32) for _ in range(2))
  segments = np.full(row_shape, -1, np.int32)
  source, target, time = (np.zeros(scored_shape, np.int32) for _ in range(3))
  sample = np.full(scored_shape, per_row * group_size, np.int32)

  for place, (prompt, group) in enumerate(zip(prompts, responses)):
    row, nth = divmod(place, per_row)
    if not nth:
      before, at, slot = 0, layout.prompt, 0
    within = slice(before, before + len(prompt))
    tokens[row, within], positions[row, within] = prompt, np.arange(len(prompt))
    segments[row, within] = first = nth * (group_size + 1)
    before += len(prompt)
    for index, response in enumerate(group):
      length = len(response)
      if not length:
        continue
      stop, scores = at + length - 1, slice(slot, slot + length)
      tokens[row, at:stop] = response[:-1]
      positions[row, at:stop] = len(prompt) + np.arange(length - 1)
      segments[row, at:stop] = first + index + 1
      source[row, scores] = np.concatenate([[before - 1], np.arange(at, stop)])
      target[row, scores], time[row, scores] = response, np.arange(length)
      sample[row, scores] = nth * group_size + index
      at, slot = stop, slot + length
  return PackedGroups(tokens, positions, segments, source, target, sample, time, layout)
