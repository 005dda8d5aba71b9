"""The process that compares one mathematical answer with its reference: text in, verdict out, a JSON line each.

`math_workers` starts this file as a program of its own (`python -P math_worker.py MEMORY_MB ALARM_S`), kills it when
an item takes too long, and starts it again. It imports nothing of this package. Whatever a model wrote is given to math-verify's
parser and to nothing else; the process has a memory limit, can write no file, and ends by itself (SIGALRM) when
the parent has died in the middle of an item.

Source: math-verify, Hugging Face, https://github.com/huggingface/Math-Verify.
"""

import fractions
import functools
import json
import os
import re
import sys

_PLAIN = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+")
_SPACED_COMMA = re.compile(r"(?<=\d),?\\!\s?,?(?=\d)|(?<=\d)(?:\{,\}|\\[,;:])(?=\d{3}(?!\d))")
_MARKED = re.compile(r"\s*\$?\s*([-+]?\d[\d,]*(?:\.\d+)?)(\s*\\?%)?(?![\d/^*+\\(-])")
_NAMED = re.compile(r"(?i:answer)(?:\s+is)?\s*:?\s*(?:\*\*)?(\(?[^\n.]{1,60})")
_DIGIT_COMMA = re.compile(r"(?<![\d,.])(\d{1,3}(?:,\d{3})+)(?![\d,])")
_WORDS = re.compile(r"\\(?:text|textbf|mathrm|mbox|textit|mathbf)\s*\{([^{}]*)\}")
_BASE = re.compile(r"\d\s*_\s*\{?\s*(\d+)\s*\}?\W*$")
_DRESS = re.compile(r"\s+|\\left(?![a-z])|\\right(?![a-z])|\\[!,;: ]|\$|\.$")
_UNICODE = str.maketrans({"\u2212": "-", "\u2013": "-", "\u00a0": " ", "\u202f": " ", "\u2009": " ", "\uff0c": ","})
_RESOURCES = (MemoryError, RecursionError)

_swallowed: list[BaseException] = []


def judge(reference: str, completion: str) -> dict:
  r"""Whether a completion's final answer is the reference.

  Args:
    reference: the right answer: LaTeX or plain text, without the working.
    completion: the response; its last `####`, `\boxed{}`, "final answer is", "answer" or number is its answer.

  Returns:
    {"right": bool, "found": bool}, found being False where there is nothing to be read as an answer; or
    {"failure": text} where that could not be decided.
  """
  reference, answer = _clean(reference), _clean(completion)
  if "####" in answer:
    answer = answer.rpartition("####")[2].strip().split("\n")[0]
    if number := _MARKED.match(answer):  # the rest of the line is units and words
      answer = number[1] + (number[2] or "")
  boxed = last_boxed(answer)
  written = answer.strip() if boxed is None else boxed
  wanted = last_boxed(reference)
  wanted = reference.strip() if wanted is None else wanted
  exact = _plain_number(wanted), _plain_number(written)
  if None not in exact and (exact[0] == exact[1] or all(value.denominator == 1 for value in exact)):
    return {"right": exact[0] == exact[1], "found": True}
  if _same_writing(wanted) == _same_writing(written) != "":
    return {"right": True, "found": True}
  bases = _BASE.search(wanted), _BASE.search(written)
  if None not in bases and bases[0][1] != bases[1][1]:  # math-verify leaves the base of a number out
    return {"right": False, "found": True}
  if name := _words(wanted):
    said = _NAMED.findall(answer) if boxed is None else []
    if name in (_words(written), *map(_words, said[-1:])):
      return {"right": True, "found": True}

  import math_verify

  del _swallowed[:]
  gold = _parsed_reference(wanted)
  if not gold:
    return {"failure": f"the reference {reference[:60]!r} cannot be read"}
  found = math_verify.parse(_as_latex(answer), parsing_timeout=None, raise_on_error=True)
  compare = functools.partial(
    math_verify.verify, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True
  )
  right = bool(found) and compare(gold, found)
  if not right and _swallowed:
    return {"failure": type(_swallowed[0]).__name__}
  return {"right": right, "found": bool(found) or boxed is not None}


def last_boxed(text: str) -> str | None:
  r"""What stands in the last closed `\boxed{...}`, braces balanced; None without one, or with several joined ones."""
  starts = [match.end() for match in re.finditer(r"\\boxed\s*\{", text)]
  for start in reversed(starts[-8:]):
    depth = 1
    for end in range(start, len(text)):
      depth += {"{": 1, "}": -1}.get(text[end], 0)
      if depth == 0:
        return text[start:end] if len(starts) == 1 or not _joined(text[:start]) else None
  return None


def _joined(before: str) -> bool:
  r"""Whether another box ends right before this one, as in `\boxed{1} and \boxed{2}`."""
  return re.search(r"\}\s*\$?\s*(?:,|and|or|,\s*and|,\s*or)\s*\$?\s*\\boxed\s*\{$", before) is not None


def _clean(text: str) -> str:
  text = text.translate(_UNICODE).replace("\x00", " ")
  return _DIGIT_COMMA.sub(lambda match: match[1].replace(",", ""), _SPACED_COMMA.sub("", text))


def _plain_number(text: str) -> fractions.Fraction | None:
  """A number that is written out in digits and stands alone, currency and a final full stop aside."""
  text = text.strip().strip("$").removeprefix("\\$").removesuffix("\\").removesuffix(".").strip()
  return fractions.Fraction(text.replace(",", "")) if len(text) < 400 and _PLAIN.fullmatch(text) else None


def _same_writing(text: str) -> str:
  """A formula without what only changes its looks: blanks, sizes of brackets and fractions."""
  return re.sub(r"\\[dt]frac(?![a-z])", r"\\frac", _DRESS.sub("", text)) if len(text) < 2000 else text


def _words(text: str) -> str:
  r"""An answer in words, such as `\text{(C)}` or Evelyn, without its dress; empty for anything with digits."""
  plain = _WORDS.sub(r"\1", text).strip().strip("$*.").strip()
  plain = re.sub(r"^\(([A-Za-z])\)$", r"\1", plain)
  return plain.casefold() if re.fullmatch(r"[^\W\d_]+(?:[ '-][^\W\d_]+)*", plain) else ""


def _as_latex(text: str) -> str:
  """Marks a short answer as mathematics where it looks like a formula and has no marks of its own."""
  if len(text) > 200 or re.search(r"\n|\$|\\boxed|\\\(|\\\[|[A-Za-z]{2,} [A-Za-z]{2,}", text):
    return text
  return f"${text.strip().removesuffix('.')}$" if re.search(r"\\[a-zA-Z]|[\[{(,=^_]", text) else text


@functools.lru_cache(maxsize=256)
def _parsed_reference(text: str):
  import math_verify

  dressed = text if "$" in text.replace("\\$", "") else f"${text}$"
  return math_verify.parse(dressed, parsing_timeout=None, raise_on_error=True)


def _remember_swallowed() -> None:
  """Notes what math-verify drops: it takes any exception of its LaTeX parser for unreadable text, also MemoryError."""
  from math_verify import parser

  parse = parser.parse_latex_cached

  def watched(*args, **kwargs):
    try:
      return parse(*args, **kwargs)
    except _RESOURCES as error:
      _swallowed.append(error)
      raise

  parser.parse_latex_cached = watched


def _limit(memory_mb: int) -> None:
  import resource

  limits = {"RLIMIT_AS": memory_mb << 20, "RLIMIT_CORE": 0, "RLIMIT_FSIZE": 0}
  for name, value in limits.items():
    kind = getattr(resource, name)
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def main(argv: list[str]) -> None:
  """Serves items until the input ends: one JSON line in, [reference, completion], one out."""
  import logging
  import signal

  memory_mb, alarm_s = int(argv[1]), int(argv[2])
  answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
  os.dup2(2, 1)  # nothing that is printed by accident gets among the answers
  say = lambda message: (answers.write(json.dumps(message) + "\n"), answers.flush())
  try:
    sys.dont_write_bytecode = True
    _limit(memory_mb)
    logging.disable(logging.CRITICAL)
    _remember_swallowed()
    for warm in ("\\frac{1}{2}", "(1, 2]", "x^2 + \\sqrt{3}", "7 apples"):
      judge(warm, f"So it is ${warm}$, and the final answer is $\\boxed{{{warm}}}$.")
  except Exception as error:
    say({"fatal": f"{type(error).__name__}: {error}"})
    return
  say({"ready": True})
  for line in sys.stdin:
    signal.alarm(alarm_s)
    try:
      verdict = judge(*json.loads(line))
    except Exception as error:  # sympy can raise anything
      verdict = {"failure": type(error).__name__}
    signal.alarm(0)
    try:
      say(verdict)
    except MemoryError:
      os._exit(1)
    if verdict.get("failure") in ("MemoryError", "RecursionError"):
      return  # a fresh process has its memory back


if __name__ == "__main__":
  main(sys.argv)
