"""Process that compares one mathematical answer with its reference: text in, verdict out, one JSON line each.

`math_workers` starts this file as a program of its own (`python -P math_worker.py MEMORY_MB ALARM_S`), kills it if an
item takes too long, and restarts it. It imports nothing of this package. A model's text is passed to math-verify's
parser and to nothing else. The process has a memory limit, can write no file, and ends by itself (SIGALRM) if the
parent dies in the middle of an item.

Source: math-verify, Hugging Face, https://github.com/huggingface/Math-Verify.
"""

import functools
import json
import os
import re
import sys

if __name__ == "__main__":  # A program of its own, which does not import the package and with it JAX.
  sys.path.append(os.path.dirname(os.path.abspath(__file__)))
  import math_number
  import math_text
else:
  from qempo_jax.rewards import math_number
  from qempo_jax.rewards import math_text

_WORDS = re.compile(r"\\(?:text|textbf|mathrm|mbox|textit|mathbf)\s*\{([^{}]*)\}")
_CHOICE = re.compile(r"\(?([A-Za-z])[).:](?=[\s\\]|$)(?!\s*[+*/^=])(?!.*(?:\bor\b|\band\b|,|/)[\s(]*[A-Z]\b)")
_BASED = re.compile(r"\W*(\d+)\s*(?:_\s*\{?\s*|\(?base\s+)(\d+)\W*", re.IGNORECASE)
_DRESS = re.compile(r"\s+|\\left(?![a-z])|\\right(?![a-z])|\\[!,;: ]|\$|\.$")
_THOUSANDS = re.compile(r"(?<![\d,])\d{1,3}(?:,\d{3})+(?![\d,])")
_NUMBERS = re.compile(r"[^A-Za-z]*\d[^A-Za-z]*(?:\b(?:and|or)\b[^A-Za-z]*\d[^A-Za-z]*)+")
_JOINED_DIGITS = re.compile(r"(?<=\d)(?:\{,\}|,\\!\s?)(?=\d{3}(?!\d))")
_UNIT_OF_ELEMENT = re.compile(r"\\(?:text|mbox|mathrm)\{\s*(?!and|or)[A-Za-z. ]+\}(?:\^\{?\d\}?)?(?=\s*[,;])")
_RESOURCES = (MemoryError, RecursionError)
_RELATIVE = (
  1e-5  # Largest relative difference of numbers that math-verify, which rounds to six decimals, treats as equal.
)

_swallowed: list[BaseException] = []


def judge(reference: str, completion: str) -> dict:
  """Judges if a completion's final answer is the reference.

  Args:
    reference: the right answer: LaTeX or plain text, without the working.
    completion: the response, in which `math_text` locates the answer.

  Returns:
    {"right": bool, "found": bool}, with found False if nothing can be read as an answer; or {"failure": text} if it
    could not be decided.
  """
  wanted = math_text.plain(reference).strip()
  boxed = math_text.last_boxed(wanted)
  wanted = wanted if boxed is None else boxed
  said, kind = math_text.statement(math_text.region(math_text.plain(completion)))
  gold = math_number.read(wanted)
  if kind in ("sentence", "prose") and len(said) <= 200 and _NUMBERS.fullmatch(said):
    said, kind = re.sub(r",?\s*\b(?:and|or)\b", ",", said), "formula"
  if kind in ("sentence", "prose") and gold is not None and math_number.read(said) is None:
    said, kind = math_text.last_number(said) or "", "number"
  if not said.strip():
    return {"right": False, "found": False}
  right = _decided(wanted, said, gold, kind)
  if gold is not None:  # math-verify would read 1,000,000 as a list.
    wanted, said = map(_without_separators, (wanted, said))
  return {"right": right, "found": True} if right is not None else _verified(wanted, said, kind)


def _decided(wanted: str, said: str, gold: math_number.Quantity | None, kind: str) -> bool | None:
  """Verdict without algebra, for plain numbers, equal formulas, number bases and words; else None."""
  got = math_number.read(said)
  bases = _BASED.fullmatch(wanted), _BASED.fullmatch(said)
  if gold is not None and bases[1]:
    return 2 <= int(bases[1][2]) <= 36 and gold.value == _value(*bases[1].groups())
  if bases[0]:
    return bases[0].groups() == bases[1].groups() if bases[1] else bases[0][1] == said.strip(" $.*")
  if gold is not None and got is not None:
    return math_number.equal(gold, got)
  if (gold or got) and (gold or got).clock or (gold and not math_number.may_be_formula(said)):
    return False
  if _same_writing(wanted) == _same_writing(said) != "":
    return True
  if {_outer(wanted), _outer(said)} == {"(", "{"}:
    return False
  if name := _words(wanted):
    choice = _CHOICE.match(_WORDS.sub(r"\1", said).strip(" *$"))
    if name in (_words(said), kind != "box" and _words(re.split("[,;(]", said)[0]), choice and choice[1].casefold()):
      return True
    if _words(said) and kind != "prose":
      return False
  return None


def _verified(wanted: str, said: str, kind: str) -> dict:
  """math-verify's verdict; a stated answer is LaTeX as a whole, and prose is read by math-verify's own rules."""
  import math_verify

  del _swallowed[:]
  gold = _parsed_reference(wanted)
  if not gold:
    return {"failure": f"the reference {wanted[:60]!r} cannot be read"}
  settings = {"parsing_timeout": None, "raise_on_error": True}
  if kind in ("sentence", "prose"):
    found = math_verify.parse(_as_latex(said), **settings)
  else:
    found = math_verify.parse(_dressed(said), [math_verify.LatexExtractionConfig()], **settings)
  compare = functools.partial(
    math_verify.verify, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True
  )
  right = bool(found) and compare(gold, found) and not _numbers_differ(gold[0], found[0])
  if not right and _swallowed:
    return {"failure": type(_swallowed[0]).__name__}
  return {"right": right, "found": bool(found) or kind != "prose"}


def _numbers_differ(gold, found) -> bool:
  """True if two numbers differ that math-verify may have rounded to be equal, mostly tiny ones."""
  import sympy

  if any(
    not isinstance(side, sympy.Expr) or side.free_symbols or side.has(sympy.UnevaluatedExpr) for side in (gold, found)
  ):
    return False
  gold, found = gold.doit(), found.doit()
  if gold.is_Rational and found.is_Rational:
    return gold != found
  gold, found = (complex(side.evalf(20, maxn=4000) / _scale(gold)) for side in (gold, found))
  return abs(gold - found) > _RELATIVE * max(abs(gold), abs(found))


def _scale(value):
  """A power of ten near a number's size, so that the quotient fits a float."""
  import sympy

  size = sympy.Abs(value).evalf(5, maxn=4000)
  return sympy.Integer(10) ** int(sympy.floor(sympy.log(size, 10))) if size else sympy.Integer(1)


def _value(digits: str, base: str) -> int | None:
  try:
    return int(digits, int(base))
  except ValueError:
    return None


def _same_writing(text: str) -> str:
  """A formula without pure layout: blanks, sizes of brackets and fractions."""
  if len(text) >= 2000:
    return text
  text = re.sub(r"(?<=\d)\s+(?=[\d\\])", "~", re.sub(r"\\[dt]frac(?![a-z])", r"\\frac", text.strip(" *")))
  return _DRESS.sub("", text)


def _without_separators(text: str) -> str:
  """Thousands separators removed outside brackets, where a comma would separate elements."""
  if re.search(r"[(\[]|\\\{", text):
    return text
  return _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)


def _outer(text: str) -> str:
  """The bracket around a list of elements: "(" also for intervals, "{" for sets; empty for anything else."""
  text = _DRESS.sub("", text.strip(" *"))
  if re.fullmatch(r"[(\[](?:[^(){}\[\]\\]|\\[a-zA-Z]+)*,[^(){}\[\]]*[)\]]", text):
    return "("
  return "{" if re.fullmatch(r"\\\{[^(){}\[\]|:<>]*,[^(){}\[\]|:<>]*\\\}", text) else ""


def _words(text: str) -> str:
  r"""An answer in words, such as `\text{(C)}` or Evelyn, without markup; empty for anything with digits."""
  plain = _WORDS.sub(r"\1", text).strip().strip("$*_.`\"'").strip()
  plain = re.sub(r"^\(([A-Za-z])\)$", r"\1", plain)
  return plain.casefold() if re.fullmatch(r"[^\W\d_]+(?:[ '-][^\W\d_]+)*", plain) else ""


def _dressed(text: str) -> str:
  """A formula between dollar signs, if it has none; commas that separate elements get a blank."""
  text = re.sub(r"(?<![\d)])\*\*|\*\*(?![-\d(])|`", "", text).strip().removesuffix(".")
  text = _UNIT_OF_ELEMENT.sub("", text)  # math-verify would drop everything behind the first unit.
  if not re.search(r"[(\[]|\\\{", text):
    text = _JOINED_DIGITS.sub("", text)
  text = re.sub(r"(?<!\{),(?=\d)", ", ", text)
  return text if re.search(r"(?<!\\)\$|\\\(|\\\[", text) else f"${text}$"


def _as_latex(text: str) -> str:
  """Marks a short answer as mathematics if it looks like an unmarked formula."""
  if len(text) > 200 or re.search(r"\n|\$|\\boxed|\\\(|\\\[|[A-Za-z]{2,} [A-Za-z]{2,}", text):
    return text
  return f"${text.strip().removesuffix('.')}$" if re.search(r"\\[a-zA-Z]|[\[{(,=^_]", text) else text


@functools.lru_cache(maxsize=256)
def _parsed_reference(text: str):
  import math_verify

  return math_verify.parse(_dressed(text), parsing_timeout=None, raise_on_error=True)


def _record_swallowed() -> None:
  """Records exceptions that math-verify swallows: even a MemoryError in its LaTeX parser counts as unreadable text."""
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
  os.dup2(2, 1)  # Accidental prints do not mix with the answers.
  say = lambda message: (answers.write(json.dumps(message) + "\n"), answers.flush())
  try:
    sys.dont_write_bytecode = True
    _limit(memory_mb)
    logging.disable(logging.CRITICAL)
    _record_swallowed()
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
    except Exception as error:  # sympy can raise anything.
      verdict = {"failure": type(error).__name__}
    signal.alarm(0)
    try:
      say(verdict)
    except MemoryError:
      os._exit(1)
    if verdict.get("failure") in ("MemoryError", "RecursionError"):
      return  # A new process has its memory back.


if __name__ == "__main__":
  main(sys.argv)
