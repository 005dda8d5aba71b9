"""Open-list tasks: ask for one item of a known set, so that quality and diversity are both exactly measurable.

The reward is 1 for exactly one acceptable item, else 0. Aligned models are known to collapse on such prompts
(NoveltyBench, Zhang et al., https://arxiv.org/abs/2504.05228), already within a few tokens.

Four splits keep training, the choice of settings, and evaluation apart:

  train                the training sets in the training wordings
  validation_wordings  the training sets in other wordings, for the choice of settings
  heldout_wordings     the training sets in wordings that neither training nor the choice of settings has seen
  heldout_set          sets never trained on, in the training wordings, so that only the set is new
"""

from collections.abc import Sequence
import functools
import itertools
import re
from typing import NamedTuple
import unicodedata

from qempo_jax.errors import InputError
from qempo_jax.rewards import open_list_sets
from qempo_jax.rewards import texts

SPLITS = ("train", "validation_wordings", "heldout_wordings", "heldout_set")

HELDOUT_SETS = ("bird", "flower", "language", "profession")

TRAIN_WORDINGS = (
  "Answer with one word or name only, no sentence. Give {a_noun}.",
  "Choose one {noun}. Answer in at most two words.",
  "Fill in the blank with {a_noun}: ____",
  "Output only the name of {a_noun}.",
)

VALIDATION_WORDINGS = (
  "One word answer: {a_noun}.",
  "Write the name of {a_noun}. Do not write a sentence.",
  "Pick one {noun}. Reply in one or two words, no sentence.",
  "Say just one {noun}, in at most two words.",
)

HELDOUT_WORDINGS = (
  "Name {a_noun}. Just the name, nothing else.",
  "Give me the name of one {noun}, in one or two words.",
  "Think of {a_noun} and write only its name.",
  "Answer briefly with the name of {a_noun}.",
  "Reply with {a_noun} and nothing more.",
  "Which {noun} comes to mind? Answer with the name only.",
  "Write down one {noun}. No explanation.",
  "In one or two words, name {a_noun}.",
)

WORDINGS = {
  "train": TRAIN_WORDINGS,
  "validation_wordings": VALIDATION_WORDINGS,
  "heldout_wordings": HELDOUT_WORDINGS,
  "heldout_set": TRAIN_WORDINGS,
}


# Keys of `families` over which a split's claim generalises, and the claim.
BOTH = (("set_name", "wording"), "new sets and new wordings")
CLUSTERS = {
  "validation_wordings": (("wording",), "new wordings of these sets"),
  "heldout_wordings": (("wording",), "new wordings of these sets"),
  "heldout_set": (("set_name",), "new sets in these wordings"),
}


class AnswerSet(NamedTuple):
  """A closed list: its singular noun, canonical items, every accepted surface form (normalised) and name of an item."""

  noun: str
  items: tuple[str, ...]
  surface_forms: dict[str, str]
  names: tuple[str, ...]


class Task(NamedTuple):
  """One prompt, its answer set and its split."""

  set_name: str
  prompt: str
  split: str


def tasks(split: str, sets: Sequence[str] | None = None, wordings: Sequence[int] | None = None) -> list[Task]:
  """Prompts of a split, set by set.

  Args:
    split: one of SPLITS.
    sets: names of the sets; None: all sets of the split. Sets of other splits are refused, so that no held-out set is
      ever trained on.
    wordings: positions in WORDINGS[split]; None: all.

  Returns:
    One task for every set and wording.

  Raises:
    InputError: the split, a set or a wording is unknown.
  """
  if split not in SPLITS:
    raise InputError(f"Unknown open-list split {split!r}: use one of {', '.join(SPLITS)}.")
  heldout = split == "heldout_set"
  allowed = tuple(name for name in SETS if (name in HELDOUT_SETS) == heldout)
  for name in sets or ():
    if name not in allowed:
      raise InputError(f"Open-list set {name!r} is not in split {split!r}: use some of {', '.join(allowed)}.")
  templates = WORDINGS[split]
  positions = range(len(templates)) if wordings is None else wordings
  for position in positions:
    if not 0 <= position < len(templates):
      raise InputError(f"Split {split!r} has no wording {position}: use positions from 0 to {len(templates) - 1}.")
  return [
    Task(name, _fill(templates[position], SETS[name].noun), split)
    for name in (allowed if sets is None else sets)
    for position in positions
  ]


def families(set_name: str, prompt: str) -> dict[str, str] | None:
  """Set and wording of one of this task's prompts; None for any other prompt."""
  if set_name not in SETS:
    return None
  wording = _wordings(set_name).get(prompt)
  return None if wording is None else {"set_name": set_name, "wording": wording}


@functools.cache
def _wordings(set_name):
  """{prompt: template} of a set, over all splits."""
  return {_fill(template, SETS[set_name].noun): template for wordings in WORDINGS.values() for template in wordings}


def parse_answer(completion: str, set_name: str) -> str | None:
  """Canonical item of a completion; None unless it is exactly one acceptable item.

  Case, accents, hyphens, surrounding spaces, one pair of quotes or asterisks, one final '.' or '!' and a leading
  article are ignored; any other word, or a line break, makes the answer unacceptable.
  """
  return answer_set(set_name).surface_forms.get(_normalise(_unwrap(completion)))


def open_list_reward(
  prompts: Sequence[str], completions: Sequence[str], *, set_name: Sequence[str], **columns
) -> list[float | None]:
  """1.0 for each completion that is exactly one acceptable item of its set, else 0.0.

  Args:
    prompts: one a completion; not used.
    completions: responses as text or messages, without special tokens.
    set_name: the requested set, one a completion.
    **columns: other columns of the data; not used.

  Returns:
    One score a completion; None if it is not text.
  """
  del prompts, columns
  return [
    None if text is None else float(parse_answer(text, name) is not None)
    for text, name in zip(texts.texts_of(completions), set_name, strict=True)
  ]


def answer_set(set_name: str) -> AnswerSet:
  """The set of that name; raises InputError if there is none."""
  if set_name not in SETS:
    raise InputError(f"Unknown open-list set {set_name!r}: use one of {', '.join(SETS)}.")
  return SETS[set_name]


@functools.cache
def written_forms(set_name: str) -> dict[str, str]:
  """The usual texts that `parse_answer` accepts, and the item of each.

  Every name as it is, in lower case, with a first capital or with all of them; bare, with an article, or in double quotes or
  bold; without a final mark, with a stop or with an exclamation mark.
  """
  found = {}
  for name in answer_set(set_name).names:
    indefinite = "an" if name[0] in "AEIOUaeiou" else "a"
    articles = ("", f"{indefinite} ", f"{indefinite.capitalize()} ", "the ", "The ")
    for case in dict.fromkeys([name, name.lower(), name[:1].upper() + name[1:], name.title()]):
      found |= dict.fromkeys(article + case + mark for article, mark in itertools.product(articles, ("", ".", "!")))
      for around in ('"', "**"):
        found |= dict.fromkeys([around + case + around, around + case + around + ".", around + case + "." + around])
  found = {text: parse_answer(text, set_name) for text in found}
  return {text: item for text, item in found.items() if item is not None}


_PAIRS = (("**", "**"), ("*", "*"), ('"', '"'), ("'", "'"), ("`", "`"), ("“", "”"), ("‘", "’"))


def _unwrap(text: str) -> str:
  """Drops one final mark and one pair of quotes or asterisks, in either order."""
  text = text.strip(" ")
  marked = text[-1:] in (".", "!")
  if marked:
    text = text[:-1]
  for opening, closing in _PAIRS:
    if len(text) > len(opening + closing) and text.startswith(opening) and text.endswith(closing):
      text = text[len(opening) : -len(closing)]
      break
  if not marked and text[-1:] in (".", "!"):
    text = text[:-1]
  return text


def _normalise(text: str) -> str:
  """Lower case, no accents, hyphens as spaces, no leading article."""
  decomposed = unicodedata.normalize("NFKD", text.replace("’", "'"))
  plain = "".join(char for char in decomposed if not unicodedata.combining(char)).casefold()
  return re.sub(r"^(the|an?) ", "", re.sub(" +", " ", plain.replace("-", " ")))


def _plural(word: str) -> str:
  if re.search(r"[^aeiou]y$", word):
    return word[:-1] + "ies"
  return word + ("es" if re.search(r"(s|x|z|ch|sh|[^aeiou]o)$", word) else "s")


def _fill(template: str, noun: str) -> str:
  article = "an" if noun[0] in "AEIOaeio" and not noun.startswith("European") else "a"
  return template.format(noun=noun, a_noun=f"{article} {noun}")


def _build(source: open_list_sets.Source) -> AnswerSet:
  items, surface_forms, written = [], {}, {}
  for entry in source.text.split(","):
    names = [name.strip() for name in entry.split("=")]
    items.append(names[0])
    for name in names:
      plurals = [_plural(name), name + "s"] if source.plurals else []
      written |= dict.fromkeys([name, *plurals, *([f"{name} {source.suffix}"] if source.suffix else [])])
      forms = {_normalise(name), _normalise(name.removesuffix(".")), _normalise(name.replace(".", ""))}
      if source.suffix:
        forms |= {f"{form} {source.suffix}" for form in forms}
      if source.plurals:
        forms |= {_plural(form) for form in forms} | {form + "s" for form in forms}
      for form in forms:
        if surface_forms.setdefault(form, names[0]) != names[0]:
          raise ValueError(f"{form!r} is both {surface_forms[form]!r} and {names[0]!r} in the list of {source.noun}")
  return AnswerSet(source.noun, tuple(items), surface_forms, tuple(written))


SETS = {name: _build(source) for name, source in open_list_sets.SOURCES.items()}
