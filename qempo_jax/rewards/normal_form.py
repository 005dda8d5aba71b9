"""Normal form of answers, without differences of case, Unicode variants, quotes, stops, articles and emphasis.

Differences that change an answer stay: letters' marks (Thai vowels), `C++`, `C#`, `-5`, `3.5`, `1/2`, `<=`, `5%`, `$5`,
`x^2`, `A*`, `f'`, `6'2"`, `!x`, `a_b`. Blanks between characters of scripts without blanks between words do not. A text
without any word of two letters is read as a formula, in which every sign but outer decoration counts.
"""

import functools
import re
import unicodedata

from qempo_jax.rewards import words

# Description for reports.
DEFINITION = (
  "case, Unicode variants, quotes, brackets, stops and articles aside; marks of letters and signs of numbers count"
)

_ARTICLES = re.compile(r"(?<!\S)(?:a|an|the) (?=\S)")
_SUPERSCRIPT = re.compile("[\xb2\xb3\xb9\u2070-\u207f]+")
_FRACTION_BEHIND_DIGIT = re.compile("(?<=[0-9])(?=[\xbc-\xbe\u2150-\u215e])")
_BULLET = re.compile(r"^[ \t]*(?:[-+*\u2022>]|#+)[ \t]+", re.MULTILINE)
_EMPHASIS = re.compile(r"\*\*|__|~~|`")
_OPENING_QUOTE = re.compile("(?<![^\\W_])[\"'\u2018\u201c]")
# A prime behind a single letter or a number: f', 6'2".
_PRIME = re.compile("(?<![\\w.,'\"\u2018-\u201f])([^\\W\\d_]|\\d+(?:[.,]\\d+)?)([\"'\u2019\u201d]{1,3})(?![^\\W\\d_])")
_BLANK_BEFORE_UNIT = re.compile(r"(?<=[0-9])\s+(?=[%\u2030\xb0])")
_SAME_SIGN = str.maketrans(
  {
    "\u2010": "-",
    "\u2011": "-",
    "\u2012": "-",
    "\u2013": "-",
    "\u2212": "-",
    "\u2044": "/",
    "\u2264": "<=",
    "\u2265": ">=",
    "\u2260": "!=",
  }
)
_TWO_LETTERS = re.compile(r"[^\W\d_]{2}")
_OPERATORS = frozenset("+-*/^=<>%\xb1\xd7\xf7\u221a\u221e")


def normal_form(text: str) -> str:
  """Normal form of a text; the text itself if neither word nor sign is left."""
  plain = _folded(text)
  form = _formula(plain) if _is_formula(plain) else _phrase(plain)
  return form or text.strip()


def _folded(text: str) -> str:
  """Compatibility forms, one case, no invisible characters, no bullets or emphasis, one sign for each meaning."""
  text = _SUPERSCRIPT.sub(lambda match: "^" + unicodedata.normalize("NFKC", match[0]), text)
  text = _PRIME.sub(_primed, _FRACTION_BEHIND_DIGIT.sub(" ", text))
  plain = unicodedata.normalize("NFKC", text).casefold().translate(_SAME_SIGN)
  if not plain.isascii():
    plain = "".join(character for character in unicodedata.normalize("NFC", plain) if not _is_invisible(character))
  return _BLANK_BEFORE_UNIT.sub("", _EMPHASIS.sub("", _BULLET.sub("", plain))).strip()


def _primed(match: re.Match) -> str:
  """Writes quotes as primes, unless they may close a quotation that was opened before."""
  if _OPENING_QUOTE.search(match.string[: match.start()]):
    return match[0]
  return match[1] + "".join("\u2032\u2032" if sign in '"\u201d' else "\u2032" for sign in match[2])


@functools.lru_cache(4096)
def _is_invisible(character: str) -> bool:
  return unicodedata.category(character) == "Cf" or "\ufe00" <= character <= "\ufe0f"


def _is_formula(plain: str) -> bool:
  return not _TWO_LETTERS.search(plain) and any(_is_digit(sign) or sign in _OPERATORS for sign in plain)


def _formula(plain: str) -> str:
  """Drops blanks at signs, a stop at the end, quotes, and dollars or brackets around the whole."""
  found = re.sub(r"[\"'\u2018-\u201f]", "", plain).replace("\xd7", "*").replace("\xf7", "/").rstrip(".,;:? ")
  if not _is_grade(found):
    found = found.strip("*_ ").rstrip(".,;:? ")
  if len(found) > 2 and found[0] == found[-1] == "$":
    found = found[1:-1]
  if len(found) > 2 and found[0] + found[-1] in ("()", "[]") and not re.search(r"[()\[\],]", found[1:-1]):
    found = found[1:-1]
  return re.sub(r"\s*([^\w\s])\s*", r"\1", " ".join(found.split())).strip()


def _phrase(plain: str) -> str:
  """Words without articles; signs only if they change a word or number."""
  kept = "".join(sign if _counts(plain, position) else " " for position, sign in enumerate(plain))
  return _ARTICLES.sub("", words.closed_up(" ".join(kept.split())))


def _counts(text: str, position: int) -> bool:
  """True if the character at a position is part of the text's meaning."""
  sign = text[position]
  kind = _kind(sign)
  if kind in "LNM":
    return True
  if sign.isspace():
    return False
  before, after = text[position - 1 : position] or " ", text[position + 1 : position + 2] or " "
  if sign in _RULES:
    return _RULES[sign](text, position, before, after)
  if unicodedata.category(sign) == "Sc":  # Currencies.
    return _is_digit(before) or _is_digit(after)
  return unicodedata.category(sign) == "Sm"  # Mathematical signs, + < = > among them.


@functools.lru_cache(4096)
def _kind(sign: str) -> str:
  return unicodedata.category(sign)[0]


def _is_digit(sign: str) -> bool:
  return _kind(sign) == "N"


def _is_word(sign: str) -> bool:
  return _kind(sign) in "LNM"


def _minus(text, position, before, after) -> bool:
  """A sign before a number or a single letter, between two digits, in an arrow, or behind a single letter (A-)."""
  further = text[position + 2 : position + 3] or " "
  number = _is_digit(after) or after in "\u221e>" or (after in ".$\u20ac\xa3" and _is_digit(further))
  if number or (_is_word(after) and not _is_word(further)):
    return _is_digit(before) or not (before.isascii() and _is_word(before)) or after == ">"
  two_before = text[position - 2 : position - 1] if position > 1 else " "
  return _kind(before) == "L" and not _is_word(two_before) and not _is_word(after)


def _point(text, position, before, after) -> bool:
  """A decimal point, or the first character of a name (.NET)."""
  del text, position
  return (_is_digit(after) and _kind(before) not in "LM") or (before.isspace() and _kind(after) == "L")


def _is_grade(text: str) -> bool:
  """True for a text with one asterisk, behind a single letter, which is no emphasis: A*."""
  return text.count("*") == 1 and re.search(r"(?<!\w)[^\W\d_]\*(?!\w)", text) is not None


def _star(text, position, before, after) -> bool:
  return _beside_digit(text, position, before, after) or _is_grade(text)


def _between_words(text, position, before, after) -> bool:
  del text, position
  return _is_word(before) and _is_word(after)


def _between_digits(text, position, before, after) -> bool:
  del text, position
  return _is_digit(before) and _is_digit(after)


def _beside_digit(text, position, before, after) -> bool:
  del text, position
  return _is_word(before) and _is_word(after) and (_is_digit(before) or _is_digit(after))


def _behind_digit(text, position, before, after) -> bool:
  del text, position, after
  return _is_digit(before)


_RULES = {
  "-": _minus,
  ".": _point,
  ":": _between_digits,
  "/": _beside_digit,
  "*": _star,
  "_": _between_words,
  "\u2032": lambda text, position, before, after: not before.isspace(),
  "^": lambda text, position, before, after: not before.isspace() and not after.isspace(),
  "%": _behind_digit,
  "\u2030": _behind_digit,
  "\xb0": _behind_digit,
  "#": lambda text, position, before, after: _kind(before) == "L" and not _is_word(after),
  "\u266d": lambda text, position, before, after: _kind(before) == "L",
  "&": lambda text, position, before, after: True,
  "@": _between_words,
  "!": lambda text, position, before, after: after == "=" or (_is_word(after) and not _is_word(before)),
  "|": lambda text, position, before, after: "|" in (before, after),
}
