r"""Reads plain numbers and times of day exactly, and compares them.

    equal(read("1,080 dollars"), read("1.08e3"))        # True
    read("2 + 3"), read("2 x"), read("2 to 5")          # None: each is more than a number

Imports nothing of this package: `math_worker` also runs as a program of its own.
"""

import fractions
import re
from typing import NamedTuple

_MAX_CHARS, _MAX_EXPONENT = 2000, 5000
_GAP = r"(?:\s|\\[,;:! ]|~)*"
_SEPARATOR = r"(?:,(?:\\!\s?)?|\{,\}|\\[,;:! ]|[ '])"
_INTEGER = rf"(?:\d{{1,3}}(?:{_SEPARATOR}\d{{3}})+(?!\d)|\d+)"
_POWER = r"\s*(?:\\times|\\cdot|[*xX])\s*10\s*(?:\^|\*\*)\s*(?:\{\s*([-+]?\d+)\s*\}|\(([-+]?\d+)\)|([-+]?\d+))"
_FRACTION = re.compile(
  rf"(?:(\d+){_GAP})?\\frac\s*(?:\{{\s*([-+]?{_INTEGER})\s*\}}|(\d))\s*(?:\{{\s*({_INTEGER})\s*\}}|(\d))"
)
_MIXED = re.compile(r"(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.])")
_RATIO = re.compile(rf"({_INTEGER})\s*/\s*({_INTEGER})(?![\d.])")
_DECIMAL = re.compile(rf"({_INTEGER}(?:\.\d+)?|\.\d+)(?:[eE]([-+]?\d+)|{_POWER})?")
_BARE_POWER = re.compile(r"^10(?=\s*(?:\^|\*\*))")
_CLOCK = re.compile(r"(\d{1,2})(?:\s*:\s*(\d\d))?(?:\s*:\s*(\d\d))?\s*(?:([ap])\.?\s?m\b\.?)?(?![\d:])", re.IGNORECASE)
_COLONS = re.compile(r"\d+(?:\s*:\s*\d+)+$")
_OF_A_NUMBER = re.compile(r"\s*of\s+\W*\d", re.IGNORECASE)
_PERCENT = re.compile(rf"{_GAP}(?:%|(?:percent|per cent|pct)\b)", re.IGNORECASE)
_SCALES = {
  "dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "lakh": 10**5,
  "crore": 10**7, "mln": 10**6, "mn": 10**6, "bn": 10**9, "millionen": 10**6, "millones": 10**6, "mio": 10**6, "mrd": 10**9,
  "\u0442\u044b\u0441": 10**3, "\u0442\u044b\u0441\u044f\u0447": 10**3, "\u043c\u043b\u043d": 10**6, "\u043c\u043b\u0440\u0434": 10**9,
  "\u0932\u093e\u0916": 10**5,
}  # fmt: skip
# Directly behind a number: "15k", "15K", "15M", "15B", where "15m" are metres, and the Han and Hangul powers of ten.
_SUFFIXES = {
  "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12, "\u767e": 100, "\u5343": 10**3, "\ucc9c": 10**3, "\u4e07": 10**4,
  "\u842c": 10**4, "\ub9cc": 10**4, "\u5104": 10**8, "\u4ebf": 10**8, "\uc5b5": 10**8, "\u5146": 10**12, "\uc870": 10**12,
}  # fmt: skip
_SCALE_WORD = f"(?i:{'|'.join(_SCALES)})"
_SCALE = re.compile(
  rf"{_GAP}({_SCALE_WORD})(?!\w)|([kKMBT])\b|\s?([^\x00-\u2fff])(?<=[{''.join(_SUFFIXES)}])(?![\u514b\u7c73\u74e6])"
)  # \u5343 before the last three is kilo.
_SCALE_ANYWHERE = re.compile(rf"\b{_SCALE_WORD}s?\b")
_MATHEMATICS = re.compile(r"(?<!\\)\$[^$]+\$|\\\(.+?\\\)|\\\[.+?\\\]", re.DOTALL)
_BARE_WORD = re.compile(r"(?<![\\A-Za-z])(?!(?:sqrt|pi|and|or|sin|cos|tan|log|ln|exp|choose)\b)[A-Za-z]{2,}")
_PREFIX = re.compile(
  r"(?:(?:about|approximately|roughly|exactly|equal to|simply|just|only|therefore|thus|now|indeed)\s+)+"
  r"|[=\u2248]\s*|\([A-H]\)(?:\s|\\[,;:! ]|~)+(?=[-+.\d\\])|(?:USD|US|EUR|GBP|Rs\.?|INR)\s+|[\u20ac\u00a3\u00a5\u20b9\u20a9]\s*",
  re.IGNORECASE,
)
_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|rm)\s*\{([^{}]*)\}")
_DEGREES = re.compile(r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)(?![a-z])|\\degrees?(?![a-z])")
_BLANKED = re.compile(r"(?<![\d)])\*\*|\*\*(?![-\d(])|\\?\$|\\[()\[\]]|\\displaystyle|`|__|\ufffd")
_UNIT = (
  r"(?:[kcm]?m|[kmu]?g|lbs?|oz|ft|in|yd|mi|mph|kph|hrs?|h|min|s|secs?|m?[lL]|st|nd|rd|th|USD|EUR|degrees?|inch(?:es)?|"
  r"units?|cents?|years?|days?)"
)
_UNIT_POWER = re.compile(r"(?<=[A-Za-z])\s*\^\s*\{?[2-4]\}?(?!\d)")
_NO_UNIT = (
  r"(?:pi|sqrt|sin|cos|tan|cot|sec|csc|log|ln|exp|mod|choose|factorial|squared|cubed|half|halves|thirds?|fourths?|fifths?|"
  r"sixths?|sevenths?|eighths?|ninths?|tenths?|hundredths?|thousandths?|hundreds|thousands|millions|billions|point|base)"
)
_WORD = re.compile(
  rf"(?:{_GAP}-|\s+|(?={_UNIT}\b)|(?=[^\x00-\x7f]))\s*(?!(?i:{_NO_UNIT})\b)(?:{_UNIT}\b|[^\W\d_]{{3,}}|(?i:[a-z]{{2}})\b|a\b|[^\W\d_a-zA-Z])"
)
_ALGEBRA = re.compile(r"\s*[xyz]{2,}\b|\s*[-+*/^=<>]|\s*\\")
_LINKED = re.compile(
  r"[-+*/^=<>:_]\s*[({$]*\s*[\d.]*\d|\b(?:or|plus|minus|times|divided by|multiplied by|over)\s+(?:\w+\s+)?\d"
  r"|\\(?!text)[a-zA-Z]+|[{}]",
  re.IGNORECASE,
)
_COMPOUND = re.compile(r"\W*(\w+)\.?\s+(?:and\s+)?(?:a\s+half\b|\d)", re.IGNORECASE)
_SAME_UNIT_AGAIN = re.compile(r"\s*([^\W\d_]+)\s*[,;]\s*[-+]?[\d.]+\s*\1\b")
_EXPLANATION = re.compile(r"[\s,;(]+(?:which|because|since|so|as|i\.e\.|not|rather than|instead of)\s", re.IGNORECASE)
_PREPOSITIONS = {
  "in",
  "of",
  "for",
  "at",
  "on",
  "per",
  "after",
  "from",
  "out",
  "with",
  "each",
  "every",
  "within",
  "during",
}


class Quantity(NamedTuple):
  """A number without its unit.

  Attributes:
    value: the number; for a time of day its hours, as written.
    digits: significant digits of a decimal fraction; 0 for integers and fractions, which are exact.
    percent: True if a percent sign follows.
    clock: None, or (hours, minutes, seconds, "a" or "p" or "") of a time of day, or ("ratio", its parts...).
  """

  value: fractions.Fraction
  digits: int = 0
  percent: bool = False
  clock: tuple | None = None


def read(text: str) -> Quantity | None:
  """The number of a short text, ignoring units and words behind it; the last side of a chain of equations.

  Args:
    text: from `math_text.plain`, so that its digits are ASCII.

  Returns:
    None if the text is not a number, or if the rest could be part of one: a digit, an operator, a colon.
  """
  if len(text) > _MAX_CHARS:
    return None
  text = _DEGREES.sub(" degrees ", _TEXT.sub(r" \1 ", text))
  text = _BLANKED.sub(" ", re.sub(r"\\[dtc]frac(?![a-z])", r"\\frac", text.replace("\\%", "%").replace("\\!:\\!", ":")))
  text = text.strip(" \t\n*_").removesuffix(".").removesuffix("\\").strip()
  if not re.search(r",(?!\d{3})|;|\b(?:and|or)\b|\\cup", text):
    sides = re.split(r"\\approx|\u2248", text)
    sides = [re.split(r"(?<![<>!:=])=(?!=)", side)[-1].strip() for side in sides]
    if len(sides) == 2:
      return _one(sides[0]) or _one(sides[1])
    text = sides[-1]
  return _one(text)


def equal(first: Quantity, second: Quantity) -> bool:
  """True if two numbers are equal, or one is the other rounded to at least six significant digits.

  50 % equals 0.5 and, as a unit, 50. A time of day without a.m. or p.m. equals both.
  """
  if first.clock and second.clock:
    return _same_time(first.clock, second.clock)
  if first.clock or second.clock:
    clock, number = (first, second) if first.clock else (second, first)
    return clock.value == number.value and not any(clock.clock[1:3])
  if first.percent != second.percent:
    percent, number = (first, second) if first.percent else (second, first)
    return any(_close(percent._replace(value=value), number) for value in (percent.value, percent.value / 100))
  return _close(first, second)


def may_be_formula(text: str) -> bool:
  """True if algebra may decide a text that is not a plain number: no words inside it and no digits behind it.

  math-verify drops everything after the first unit ("2 hours 30 minutes") and multiplies the letters of words.
  """
  text = _TEXT.sub(r" \1 ", text)
  if _SCALE_ANYWHERE.search(text):
    return False
  outside = _MATHEMATICS.sub(" ", text)
  if outside != text:
    return not re.search(r"\d", outside)
  return not _BARE_WORD.search(re.sub(r"(?<=[\d})!\s])[A-Za-z\s.,]*$", "", text))


def _close(first: Quantity, second: Quantity) -> bool:
  if first.value == second.value:
    return True
  gap = abs(first.value - second.value)
  if max(first.digits, second.digits) >= 15:  # A floating-point number.
    return gap * 10**14 <= 2 * max(abs(first.value), abs(second.value))
  if (first.digits == 0) == (second.digits == 0):
    return False
  rounded, exact = (first, second) if first.digits else (second, first)
  if rounded.digits < 6 or exact.value.denominator == 1:
    return False
  magnitude = len(str(int(abs(rounded.value)))) if abs(rounded.value) >= 1 else 0
  decimals = rounded.digits - magnitude
  return 2 * gap <= fractions.Fraction(1, 10**decimals) if decimals >= 0 else False


def _same_time(first: tuple, second: tuple) -> bool:
  if "ratio" in (first[0], second[0]):
    return first == second
  same_hour = first[0] % 12 == second[0] % 12
  if first[3] and second[3]:
    same_hour = same_hour and first[3] == second[3]
  elif max(first[0], second[0]) > 12:
    hours = [clock[0] % 12 + (12 if clock[3] == "p" else 0) if clock[3] else clock[0] for clock in (first, second)]
    same_hour = hours[0] == hours[1]
  return same_hour and first[1:3] == second[1:3]


def _one(text: str) -> Quantity | None:
  """A number at the beginning of the text, if nothing behind it could be part of it."""
  while prefix := _PREFIX.match(text):
    text = text[prefix.end() :]
  sign = re.match(r"([-+]|(?:negative|minus)\b)\s*", text, re.IGNORECASE)
  text = text[sign.end() :] if sign else text
  while prefix := _PREFIX.match(text):
    text = text[prefix.end() :]
  if not sign and (clock := _clock(text)):
    return clock
  for parse in (_fraction, _decimal):
    if (number := parse(text)) is None:
      continue
    quantity, rest = number
    if scale := _SCALE.match(rest):
      size = _SCALES[scale[1].lower()] if scale[1] else _SUFFIXES[scale[2] or scale[3]]
      quantity, rest = quantity._replace(value=quantity.value * size), rest[scale.end() :]
    if percent := _PERCENT.match(rest):
      quantity, rest = quantity._replace(percent=True), rest[percent.end() :]
      if _OF_A_NUMBER.match(rest):
        return None
    if sign and sign[1] != "+":
      quantity = quantity._replace(value=-quantity.value)
    return quantity if _only_words(rest) else None
  return None


def _clock(text: str) -> Quantity | None:
  if _COLONS.match(text) and not re.fullmatch(r"\d{1,2}(?:\s*:\s*\d\d){1,2}", text):
    parts = tuple(int(part) for part in text.split(":"))
    return Quantity(fractions.Fraction(parts[0]), clock=("ratio", *parts))
  match = _CLOCK.match(text)
  if match is None or not (match[2] or match[4]) or not _only_words(text[match.end() :]):
    return None
  return Quantity(
    fractions.Fraction(int(match[1])),
    clock=(int(match[1]), int(match[2] or 0), int(match[3] or 0), (match[4] or "").lower()),
  )


def _fraction(text: str) -> tuple[Quantity, str] | None:
  if match := _FRACTION.match(text):
    whole, top, bottom = match[1] or 0, match[2] or match[3], match[4] or match[5]
  elif match := _MIXED.match(text):
    whole, top, bottom = match.groups()
  elif match := _RATIO.match(text):
    whole, (top, bottom) = 0, match.groups()
  else:
    return None
  whole, top, bottom = int(whole), int(_digits(top)), int(_digits(bottom))
  if bottom == 0 or (whole and not 0 < top < bottom):
    return None
  return Quantity(whole + fractions.Fraction(top, bottom)), text[match.end() :]


def _decimal(text: str) -> tuple[Quantity, str] | None:
  match = _DECIMAL.match(_BARE_POWER.sub(r"1*\g<0>", text))
  if match is None:
    return None
  written, exponent = _digits(match[1]), int(next((group for group in match.groups()[1:] if group), "0")[:9])
  if abs(exponent) > _MAX_EXPONENT:
    return None
  digits = len(written.replace(".", "").lstrip("0")) if "." in written else 0
  return Quantity(fractions.Fraction(written) * fractions.Fraction(10) ** exponent, digits), match.string[match.end() :]


def _digits(text: str) -> str:
  return re.sub(r"[^\d.+-]", "", text)


def _only_words(rest: str) -> bool:
  """True if the text behind a number is words and units, and not part of it."""
  rest = _UNIT_POWER.sub("", re.sub(r"\(([^()\d\\+*/=^-]*)\)", r" \1 ", rest))
  rest = re.sub(r"^\s*[\u20ac\u00a2\u00a3\u00a5\u20b9\u20a9]", " ", re.sub(r"\\[,;:! ]|~", " ", rest))
  rest = _EXPLANATION.split(rest, maxsplit=1)[0]
  if not rest.strip(" .,?;:'\"*)"):
    return ")" not in rest
  if re.match(r"[.!?]\s+[A-Za-z*]", rest):
    return True
  rest = re.sub(r"^\s*[,;]\s+(?=[^\W\d_]{2})", " ", rest)
  rest = re.sub(r"^\s*/\s*(?=[^\W\d_]{2})", " ", rest)
  if _ALGEBRA.match(rest) and not re.match(r"-[^\W\d_]{3}", rest) or not _WORD.match(rest) or _LINKED.search(rest):
    return False
  compound = _COMPOUND.match(rest)
  return not _SAME_UNIT_AGAIN.match(rest) and (compound is None or compound[1].lower() in _PREPOSITIONS)
