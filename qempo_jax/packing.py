"""Packs prompts and their groups of responses in rows, so that each prompt is computed once."""

from collections.abc import Sequence

import numpy as np

from qempo_jax.errors import InputError
from qempo_jax.types import PackedGroups
from qempo_jax.types import RowLayout


def round_up(value: int, multiple: int) -> int:
  """Smallest multiple of `multiple` that is at least `value`."""
  return -(-value // multiple) * multiple


def bucketed(value: int, bucket: int) -> int:
  """Smallest width of at least `value` out of few: multiples of `bucket`, above 16 of them an eighth apart.

  Widths up to w number at most 16 + log(w / (16 bucket)) / log(1.11), and at most a ninth of one is padding.
  """
  width = 1
  while width * bucket < value:
    width += max(1, width // 8)
  return width * bucket


def row_layout(prompt: int, response: int, *, bucket: int, prompts: int, responses: int) -> RowLayout:
  """Layout for rows with prompts of up to `prompt` tokens in all, and responses of up to `response` tokens each.

  Few layouts occur, since widths are those of `bucketed`. A chunk is at least about an eighth of the reach, so that
  keys are repeated ten times at most, however long responses are.
  """
  reach = bucketed(response - 1, bucket)  # The last token is never an input.
  chunk = bucket * max(1, reach // bucket // 8)
  return RowLayout(bucketed(prompt, bucket), chunk, reach, prompts, responses)


def pack_groups(
  prompts: Sequence[Sequence[int]],
  responses: Sequence[Sequence[Sequence[int]]],
  *,
  bucket: int,
  prompts_per_row: int = 1,
) -> PackedGroups:
  """Packs prompts and their responses; NumPy, on the host.

  The widths of a row's prompts and of its response inputs are those of `bucketed`, so that few shapes compile. Scored
  tokens get G more columns a prompt than inputs, enough for any lengths.

  Args:
    prompts: P token sequences, none empty.
    responses: P groups of G token sequences each; an empty response takes no columns and scores 0.
    bucket: width multiple, tokens.
    prompts_per_row: k, a divisor of P; consecutive prompts share a row. Short groups of uneven lengths then leave less
      padding, but the scores of every response get masked columns for the row's other prompts too.

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
  rows, width = len(prompts) // per_row, bucketed(max(*fed, 1), bucket)
  row_shape, scored_shape = (rows, layout.prompt + width), (rows, width + per_row * group_size)
  tokens, positions = (np.zeros(row_shape, np.int32) for _ in range(2))
  segments = np.full(row_shape, -1, np.int32)
  source, target, time = (np.zeros(scored_shape, np.int32) for _ in range(3))
  sample = np.full(scored_shape, per_row * group_size, np.int32)

  for index, (prompt, group) in enumerate(zip(prompts, responses)):
    row, index_in_row = divmod(index, per_row)
    if not index_in_row:  # Ends of the row's prompts, response inputs and scored tokens so far.
      prompt_end, input_end, scored_end = 0, layout.prompt, 0
    columns = slice(prompt_end, prompt_end + len(prompt))
    tokens[row, columns], positions[row, columns] = prompt, np.arange(len(prompt))
    segments[row, columns] = segment = index_in_row * (group_size + 1)
    prompt_end += len(prompt)
    for member, response in enumerate(group):
      length = len(response)
      if not length:
        continue
      start, input_end = input_end, input_end + length - 1
      tokens[row, start:input_end] = response[:-1]
      positions[row, start:input_end] = len(prompt) + np.arange(length - 1)
      segments[row, start:input_end] = segment + member + 1
      scored, scored_end = slice(scored_end, scored_end + length), scored_end + length
      source[row, scored] = np.concatenate([[prompt_end - 1], np.arange(start, input_end)])
      target[row, scored], time[row, scored] = response, np.arange(length)
      sample[row, scored] = index_in_row * group_size + member
  return PackedGroups(tokens, positions, segments, source, target, sample, time, layout)
