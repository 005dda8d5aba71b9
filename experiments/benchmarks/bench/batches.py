"""Token ids of every side, cut from one text; needs NumPy only."""

import pathlib

import numpy as np


def _cut(inputs: str, rows: int, length: int) -> np.ndarray:
  """[rows, length] token ids: consecutive stretches of the text, repeated from its start if it is too short."""
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
  """Responses [P, G, T] that every side scores for the check, from another part of the text."""
  size = shape["prompts"], shape["group"], shape["response"]
  return np.roll(_cut(inputs, 1, int(np.prod(size)) + 7)[0], -7)[: np.prod(size)].reshape(size)


def advantages(shape: dict) -> np.ndarray:
  """[P G] fixed weights of mean 0 for the check's log-probs."""
  return np.linspace(-1, 1, shape["prompts"] * shape["group"])


def distinct_share(tokens) -> float:
  """The reward of the online cases: number of distinct tokens over number of tokens."""
  return len(set(map(int, tokens))) / max(len(tokens), 1)
