r"""Finds the final answer in a response to a mathematical problem: tags first, then the last statement.

    region("<think>2+3</think><answer>5</answer>")      # "5"
    statement("The answer is 4. No: \\boxed{5}")        # Statement("5", "box")

Imports nothing of this package: `math_worker` also runs as a program of its own.
"""

import re
from typing import NamedTuple
import unicodedata

_SYMBOLS = {
  "\u2212": "-", "\u2013": "-", "\u2010": "-", "\u2011": "-", "\u2044": "/", "\u2215": "/", "\u2236": ":",
  "\u066b": ".", "\u066c": ",", "\u066a": "%", "\u2019": "'", "\u00d7": "\\times ", "\u00f7": "\\div ",
  "\u00b7": "\\cdot ", "\u22c5": "\\cdot ", "\u221e": "\\infty ", "\u222a": "\\cup ", "\u2229": "\\cap ",
  "\u2264": "\\le ", "\u2265": "\\ge ", "\u2260": "\\ne ", "\u2208": "\\in ", "\u03c0": "\\pi ",
  "\u00b1": "\\pm ", "\u2248": "\\approx ", "\u00b0": "^\\circ ", "\u03b8": "\\theta ", "\u3002": ".",
}  # fmt: skip
_SCRIPT = re.compile(
  "(?P<up>[\u00b2\u00b3\u00b9\u2070\u2074-\u207b]+)|(?P<down>[\u2080-\u208b]+)|\u221a(\\d+)?|[^\x00-\x7f]"
)
# "Check our answer: 2 + 2 = 4" states no answer.
_CHECKED = re.compile(r"(?i)\b(?:check|verif|confirm|test|double-check|recheck)\w*\s+(?:\w+\s+)?$")
_TAG = re.compile(r"<\s*(/?)\s*(answer|think)\s*>", re.IGNORECASE)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_SIGN_BEFORE = re.compile(r"(?:^|[=$(\s])-(?:\\?\$)?$")
_BEHIND_BOX = re.compile(
  r"\s*\$?\s*(?:hundred|thousand|[mbtr]+illion|dozen|lakh|crore|\\?%)|(?:[.,/]|\^\{?)?\d+|!", re.IGNORECASE
)
# Signs beside a box that make it a part of a formula: 2\boxed{18}, \frac{\boxed{18}}{5}, \boxed{18} + 1, \boxed{18}x.
_OPERAND = r"(?:\d|\\(?!text|mathrm|mbox|quad|circ)[a-z]|\(|[A-Za-z](?![A-Za-z]))"
_OPENED = r"\\[dt]?frac\s*\{(?:[^{}]*\}\s*\{)?\s*|\\sqrt(?:\[\d+\])?\s*\{?\s*|\^\s*\{\s*"
_PART_BEFORE = re.compile(rf"(?:\d|[\w)}}]\s*(?:[-+/*^]|\\(?:cdot|times|div|pm)(?![a-z]))\s*|{_OPENED})$")
_PART_BEFORE_IN_PROSE = re.compile(rf"(?:\d|[\d)}}]\s*(?:[+/^]|\\(?:cdot|times|div|pm)(?![a-z]))\s*|{_OPENED})$")
_PART_BEHIND = re.compile(
  rf"\s*(?:[-+/^]|\*\*?|\\(?:cdot|times|div|pm)(?![a-z]))\s*(?!\{{?\\circ){_OPERAND}|\s*\\(?:sqrt|pi)(?![a-z])|\}}\s*\{{"
  r"|(?![mgshlL](?![A-Za-z]))[A-Za-z](?![A-Za-z])"
)
_FORMULA_END = re.compile(
  r"[=,;&$\n]|\\(?:text|mathrm|mbox)\s*\{[^{}]*\}|\\(?:approx|to|implies|quad|qquad|(?:Long)?[rR]ightarrow)(?![a-z])"
  r"|\\[\\\[\]()]|[.:](?=\s|$)"
)
_BETWEEN_BOXES = re.compile(
  r"(?:[\s$]|\\(?:quad|qquad|[,;! ]))*(?:\\text\s*\{\s*)?(?:,|;|and|or|,\s*and|,\s*or)(?:[\s$}]|\\(?:quad|qquad|[,;! ]))*"
)
_MARK = re.compile(r"(?<!#)####(?!#)(?:[ \t]*\n)*[ \t]*([^\n]*)")
_ENUMERATED = re.compile(r"\d+[.):]\s+[A-Za-z*]")
_PHRASE = re.compile(
  r"\banswers?\b[*_\"']*(?:\s+(?:to|of|for)\b[^\n.:=]{0,100}?|\s*\([^()\n]{0,60}\))?"
  r"(?:\s*[:=]|\s+(?:is|are|was|equals|will be|would be|must be|should be)\b)[*_]*\s*:?[*_]*\s*(?:that\s+)?",
  re.IGNORECASE,
)
_DISPLAY = re.compile(r"\$\$.+?\$\$|\\\[.+?\\\]", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<=[^\s.\\])[.!?](?=\s|$)|\n")
_WORDS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}(?!\s*\{)|[^\x00-\x7f]")
_HEDGES = (
  r"(?:(?:about|approximately|roughly|exactly|equal to|simply|just|only|therefore|thus|now|indeed|negative|minus)\s+)*"
)
_FORMULA = re.compile(
  rf"{_HEDGES}[\s*_`]*(?:[^\W\d_]\s*(?:[-+=^_*/]|[).,]?$)|[-+.~\u20ac\u00a3\u00a5]*\s*\d|[\\$(\[{{|-])", re.IGNORECASE
)
_ENVIRONMENT = re.compile(
  r"\$\$(.{1,2000}?)\$\$|\\\[(.{1,2000}?)\\\]|\\\((.{1,2000}?)\\\)|(?<!\\)\$(?!\d[^$\n]*\s[A-Za-z]{2,})([^$\n]+)(?<!\\)\$",
  re.DOTALL,
)
_RUN = re.compile(r"(?:\\[A-Za-z]+|\\.|[-+*/^=<>().,:{}\[\]$%\u20ac\u00a3\u00a5~]|\d|[ \t])+")
# Words before a number that make it another one: negations, alternatives and strict bounds; "at least 5" may be the answer 5.
_NEGATED = re.compile(
  r"(?:(?:\bnot|n't|\bnever)\s+(?:\w+\s+){0,2}|(?<!no )\b(?:(?:less|fewer|smaller|lower|more|greater|larger|bigger|higher)"
  r"\s+than|under|over|above|below|exceeds?|beyond)\s+|\d\S*\s+or\s+)[\W_]*$",
  re.IGNORECASE,
)


class Statement(NamedTuple):
  """A stated answer.

  Attributes:
    text: the answer as written, with the words behind it up to the sentence's end.
    kind: "box", "mark" (`####`), "phrase" ("the answer is" before a formula), "sentence" (the same before words).
      Without any of them, text is the whole text: "formula" if it has no words, else "prose".
  """

  text: str
  kind: str


def plain(text: str) -> str:
  """Writes digits of all scripts, superscripts, fractions and common symbols in ASCII or LaTeX."""
  return _SCRIPT.sub(_plain_character, text.replace("\x00", " "))


def region(text: str) -> str:
  """The part of a response that contains the answer.

  It is the last `<answer>...</answer>` outside the thoughts, else the text after the last `</think>`, else everything.
  """
  pairs, thoughts, answer_start, thought_start, thoughts_end = [], [], None, 0, 0
  for tag in _TAG.finditer(text):
    closing, name = tag[1], tag[2].lower()
    if name == "answer" and not closing:
      answer_start = tag.end()
    elif name == "answer" and answer_start is not None:
      pairs.append((answer_start, tag.start()))
      answer_start = None
    elif name == "think" and not closing:
      thought_start = tag.end()
    elif name == "think":
      thoughts.append((thought_start, tag.start()))
      thought_start, thoughts_end = 0, tag.end()
  outside = [pair for pair in pairs if not any(start <= pair[0] < end for start, end in thoughts)]
  rest = text[max(thoughts_end, answer_start or 0) :]
  if outside or (pairs and not rest.strip()):
    start, end = (outside or pairs)[-1]
    return text[start:end]
  return rest


def statement(text: str) -> Statement:
  r"""The last of `\boxed{...}`, `#### number` and "the answer is"; the whole text if there is none."""
  strong, weak = [], []
  if (box := _last_box(text)) is not None:
    strong.append((box[0], Statement(box[1], "box")))
  for mark in _MARK.finditer(text):
    last, line = not text[mark.end() :].strip(), mark[1].strip()
    is_formula = bool(_FORMULA.match(line) and re.search(r"\d|\\", line)) and not _ENUMERATED.match(line)
    if is_formula or (last and line):
      (strong if is_formula else weak).append((mark.start(), Statement(line, "mark")))
  for phrase in _PHRASE.finditer(text):
    said = _sentence(text, phrase.end())
    if said and not _CHECKED.search(text[: phrase.start()][-40:]):
      is_formula = bool(_FORMULA.match(said))
      kind = "phrase" if is_formula else "sentence"
      (strong if is_formula else weak).append((phrase.start(), Statement(said, kind)))
  candidates = strong or weak
  if candidates:
    return max(candidates, key=lambda pair: pair[0])[1]
  return Statement(text, "prose" if _WORDS.search(text) else "formula")


def last_boxed(text: str) -> str | None:
  r"""Content of the last `\boxed{...}`, braces balanced; adjacent boxes are joined by commas. None without a box."""
  box = _last_box(text)
  return box[1] if box else None


def last_number(text: str) -> str | None:
  """The last number, or formula with a number, of a text in prose, with the words behind it; None without one."""
  formulas = list(_ENVIRONMENT.finditer(text))
  runs = [run for run in _RUN.finditer(text) if re.search(r"\d", run[0])]
  runs = [run for run in runs if not (run[0][0].isdigit() and re.match("[A-Za-z]", text[max(run.start() - 1, 0) :]))]
  if formulas and (not runs or runs[-1].start() < formulas[-1].end()):
    last, joined = formulas[-1], [_content(formulas[-1])]
    for before in reversed(formulas[:-1]):
      if not _BETWEEN_BOXES.fullmatch(text[before.end() : last.start()]):
        break
      last, joined = before, [_content(before), *joined]
    if _NEGATED.search(text[: last.start()][-60:]):
      return None
    behind = _SENTENCE_END.split(text[formulas[-1].end() :], maxsplit=1)[0]
    return (
      f"{', '.join(joined)} {behind}" if re.search(r"\d", "".join(joined) + behind) else ", ".join(joined)
    ).strip()
  if not runs:
    return None
  run = runs[-1]
  start = run.start() + max([0, *(cut.end() for cut in re.finditer(r"[.;:]\s+(?=\S*\d)|^[\s.,;:)\]}=]+", run[0]))])
  if _NEGATED.search(text[:start][-60:]):
    return None
  sign = re.search(r"(?i)\b(?:negative|minus)\s+$", text[:start])
  said = _SENTENCE_END.split(text[start:], maxsplit=1)[0].strip()
  return f"-{said}" if sign else said


def _content(match: re.Match) -> str:
  return next(group for group in match.groups() if group is not None).strip()


def _sentence(text: str, start: int) -> str:
  if display := _DISPLAY.match(text, start):
    start_of_rest = display.end()
    return display[0] + _SENTENCE_END.split(text[start_of_rest:], maxsplit=1)[0]
  return _SENTENCE_END.split(text[start:], maxsplit=1)[0].strip()


def _last_box(text: str) -> tuple[int, str] | None:
  """Start and content; the content is empty if the last box is not closed."""
  found = list(_BOX.finditer(text))[-8:]
  if not found:
    return None
  formulas = [match.span() for match in _ENVIRONMENT.finditer(text)]
  boxes = [_closed(text, match, formulas) for match in found]
  start, end, content = boxes[-1]
  for before_start, before_end, before in reversed(boxes[:-1]):
    if not _BETWEEN_BOXES.fullmatch(text[before_end:start]):
      break
    start, content = before_start, f"{before}, {content}"
  return start, content


def _closed(text: str, box: re.Match, formulas: list[tuple[int, int]]) -> tuple[int, int, str]:
  depth = 1
  for brace in re.finditer(r"\\.|[{}]", text[box.end() :]):
    depth += {"{": 1, "}": -1}.get(brace[0], 0)
    if depth == 0:
      end = box.end() + brace.start()
      content = text[box.end() : end].strip()
      if whole := _formula_around(text, box.start(), end + 1, content, formulas):
        return box.start(), end + 1, whole
      sign, tail = _SIGN_BEFORE.search(text[: box.start()][-9:]), _BEHIND_BOX.match(text, end + 1)
      content = f"{'-' if sign else ''}{content}{tail[0].replace('$', ' ') if tail else ''}"
      return box.start(), end + 1, content
  return box.start(), len(text), ""


def _formula_around(text: str, start: int, end: int, content: str, formulas: list[tuple[int, int]]) -> str | None:
  """The side of an equation of which a box is a part; None if it is the whole side."""
  limits = next(((first, last) for first, last in formulas if first < start and end <= last), None)
  first, last = limits or (max(0, start - 100), end + 100)
  left, right = _FORMULA_END.split(text[first:start])[-1], _FORMULA_END.split(text[end:last], maxsplit=1)[0]
  before = (_PART_BEFORE if limits else _PART_BEFORE_IN_PROSE).search(left[-100:])
  if not before and not _PART_BEHIND.match(right):
    return None
  left = left if limits else before[0] if before else ""
  inside = f"({content})" if re.search(r"(?<!^)[-+]", content) else content
  sign = r"\cdot" if re.search(r"\d$", left) and inside[:1].isdigit() else ""
  return re.sub(r"\\(?:boxed|fbox)\s*", "", f"{left}{sign} {inside}{right}").strip()


def _plain_character(match: re.Match) -> str:
  text = match[0]
  if match["up"] or match["down"]:
    digits = unicodedata.normalize("NFKC", text).replace("\u2212", "-")
    return f"{'^' if match['up'] else '_'}{{{digits}}}"
  if text[0] == "\u221a":
    return f"\\sqrt{{{match[3]}}}" if match[3] else "\\sqrt "
  if text in _SYMBOLS:
    return _SYMBOLS[text]
  category = unicodedata.category(text)
  if category == "Nd":
    return str(unicodedata.digit(text))
  if category in ("Zs", "Cf"):
    return " " if category == "Zs" else ""
  if unicodedata.decomposition(text).startswith("<fraction>"):
    return " " + unicodedata.normalize("NFKC", text).replace("\u2044", "/")
  return unicodedata.normalize("NFKC", text) if "\uff01" <= text <= "\uff5e" else text
