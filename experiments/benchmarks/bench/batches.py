"""The same token ids for every side, cut from one text; NumPy alone."""

import pathlib

import numpy as np


def _cut(inputs: str, rows: int, length: int) -> np.ndarray:
  """[rows, length] token ids, one stretch of the text after the other, from its start again where it ends."""
  text = np.load(pathlib.Path(inputs) / "tokens.npy")
  return np.resize(text, (rows, length))


def pairs(inputs: str, shape: dict) -> tuple[np.ndarray, np.ndarray]:
  """(prompts [P, L], chosen and rejected responses [P, 2, T])."""
  count, prompt, response = shape["pairs"], shape["prompt"], shape["response"]
  rows = _cut(inputs, count, prompt + 2 * response)
  return rows[:, :prompt], rows[:, prompt:].reshape(count, 2, response)


def prompts(inputs: str, shape: dict) -> np.ndarray:
  """Prompts [P, L]."""
  return _cut(inputs, shape["prompts"], shape["prompt"])


def given_groups(inputs: str, shape: dict) -> np.ndarray:
  """Responses [P, G, T] that every side scores for the check, from another place of the text."""
  size = shape["prompts"], shape["group"], shape["response"]
  return np.roll(_cut(inputs, 1, int(np.prod(size)) + 7)[0], -7)[: np.prod(size)].reshape(size)


def advantages(shape: dict) -> np.ndarray:
  """[P G] fixed numbers of mean 0 that weigh the check's log-probs."""
  return np.linspace(-1, 1, shape["prompts"] * shape["group"])


def distinct_share(tokens) -> float:
  """The reward of the online cases: distinct tokens over tokens."""
  return len(set(map(int, tokens))) / max(len(tokens), 1)
