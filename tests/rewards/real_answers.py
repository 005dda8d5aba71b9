"""The reference answers of GSM8K and MATH-500 where QEMPO_DATA_DIR has them, and copies of them that are wrong."""

import gzip
import json
import os
import pathlib
import re

import pytest

GSM8K_SIZES = {"train": 7473, "test": 1319}


def data_file(name: str) -> pathlib.Path:
  """A file of the data folder; skips the test where there is none."""
  folder = os.environ.get("QEMPO_DATA_DIR")
  if not folder:
    pytest.skip("QEMPO_DATA_DIR is not set")
  path = pathlib.Path(folder) / name
  if not path.is_file():
    pytest.skip(f"{path} is not there")
  return path


def rows(name: str) -> list[dict]:
  """The rows of a JSON Lines file, gzipped or not."""
  path = data_file(name)
  opener = gzip.open if path.suffix == ".gz" else open
  with opener(path, "rt", encoding="utf-8") as file:
    return [json.loads(line) for line in file]


def gsm8k() -> list[str]:
  """All answers of GSM8K with their working."""
  return [row["answer"] for split in GSM8K_SIZES for row in rows(f"gsm8k/{split}.jsonl.gz")]


def perturbed_number(answer: str) -> str:
  """GSM8K's answer with its working, the number after #### one larger."""
  working, _, number = answer.rpartition("####")
  return f"{working}#### {int(number.replace(',', '')) + 1}"


def perturbed_latex(answer: str) -> str:
  """A LaTeX answer with its last number one larger; one without digits gets a term, or another word."""
  numbers = list(re.finditer(r"\d+", answer))
  if not numbers:
    return "\\text{Nobody}" if "\\text" in answer else f"{answer}+1"
  last = numbers[-1]
  if answer[: last.start()].endswith("_"):  # of a base, which is not the answer
    last = numbers[-2]
  if answer[: last.start()].endswith("}^"):  # of a unit
    last = numbers[-2]
  return answer[: last.start()] + str(int(last[0]) + 1) + answer[last.end() :]
