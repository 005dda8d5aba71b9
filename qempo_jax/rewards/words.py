"""Words of any script: one definition for figures and rewards, in two segmentations.

`split` gives tokens. They are runs of letters, digits and underscores with their combining marks, single emoji, and
runs of other visible characters. In scripts without blanks between words they are single characters (Han, Hiragana,
Katakana, Thai, Lao, Khmer, Myanmar, ...: the letters that Unicode's word boundaries, UAX #29, leave alone, and
Katakana). `by_blanks` splits at blanks, and around each character of such scripts. Both are the usual ones for scripts
with blanks.
"""

import functools
import re
from typing import Any

from qempo_jax.errors import InputError

# Description for reports.
DEFINITION = (
  "runs of letters and digits with their marks, single characters in scripts without blanks between words (Han, kana, Thai,"
  " Lao, Khmer, Myanmar), runs of other signs"
)
# Characters that Python's own classes handle: Latin, Greek, Cyrillic and usual punctuation, without marks.
_PLAIN = re.compile(
  "[\0-\xac\xae-\u02ff\u0370-\u0482\u048a-\u052f\u1e00-\u200b\u2010-\u2029\u202f-\u203b\u203d-\u2048\u204a-\u205f\u20a0-\u20bf]*"
)
_PLAIN_TOKEN = re.compile(r"\w+|[^\w\s]+")

# Blanks, and their equivalents in Tibetan, Ethiopic and, invisibly, in Khmer and Thai.
_BLANK = r"\s\u0f0b\u0f0c\u1361\u200b"
_ALONE = r"[\p{L}--\p{WB=ALetter}--\p{WB=Hebrew_Letter}]"
_MARKS = r"[\p{M}\p{Cf}--\u200b]*"
_LETTER = rf"[\p{{L}}\p{{N}}_--{_ALONE}]"
_EMOJI = r"(?=[\p{Regional_Indicator}[\p{Extended_Pictographic}--[\x00-\u02ff]]])\X"
_OTHER = rf"(?!{_EMOJI})[^\p{{L}}\p{{N}}_{_BLANK}]"


def split(text: str) -> list[str]:
  """Tokens of a text, unchanged."""
  if text.isascii() or _PLAIN.fullmatch(text):
    return _PLAIN_TOKEN.findall(text)
  return _patterns()[0].findall(text)


def by_blanks(text: str) -> list[str]:
  """Parts between blanks; in scripts without blanks each character, with the signs behind it."""
  if text.isascii() or _PLAIN.fullmatch(text):
    return text.split()
  return _patterns()[1].findall(text)


def end_of(text: str, count: int) -> int:
  """End of word number `count` of `by_blanks`, counted from 1; the text's length if there are fewer."""
  plain = text.isascii() or _PLAIN.fullmatch(text)
  matches = (re.compile(r"\S+") if plain else _patterns()[1]).finditer(text)
  return next((match.end() for number, match in enumerate(matches, start=1) if number == count), len(text))


def closed_up(text: str) -> str:
  """A text without the blanks between two characters of scripts that have none between words."""
  return text if text.isascii() or _PLAIN.fullmatch(text) else _patterns()[2].sub("", text)


@functools.cache
def _patterns() -> tuple[Any, ...]:
  try:
    import regex
  except ImportError as error:
    raise InputError("words of this script need Unicode's tables: pip install regex") from error
  tokens = rf"(?V1){_ALONE}{_MARKS}|{_LETTER}[{_LETTER}\p{{M}}[\p{{Cf}}--\u200b]]*|{_EMOJI}|(?:{_OTHER})+"
  between = rf"(?V1){_ALONE}(?:[\p{{M}}\p{{P}}\p{{Cf}}--\u200b])*|(?:(?!{_ALONE})[^{_BLANK}])+"
  gap = rf"(?V1)(?<={_ALONE}{_MARKS})[{_BLANK}]+(?={_ALONE})"
  return regex.compile(tokens), regex.compile(between), regex.compile(gap)
