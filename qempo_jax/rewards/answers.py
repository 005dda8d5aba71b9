"""Tasks with known right answers, by set name: the answer of a response, and the number of answers."""

from qempo_jax.rewards import countdown
from qempo_jax.rewards import open_list

_COUNTDOWN = "countdown "


def countdown_set(target: int) -> str:
  """Set name of a countdown puzzle's right answers."""
  return f"{_COUNTDOWN}{target}"


def known(set_name: object) -> str:
  """The name, if it is that of a set whose right answers are all known; else "", as for a user's column of that name."""
  if not isinstance(set_name, str):
    return ""
  puzzle = set_name.startswith(_COUNTDOWN) and set_name.removeprefix(_COUNTDOWN).isdecimal()
  return set_name if puzzle or set_name in open_list.SETS else ""


def parse_answer(completion: str, set_name: str) -> str | None:
  """The canonical right answer of a completion, or None; raises InputError for an unknown set."""
  if set_name.startswith(_COUNTDOWN):
    return countdown.solution(completion, int(set_name.removeprefix(_COUNTDOWN)))
  return open_list.parse_answer(completion, set_name)


def set_size(set_name: str) -> int:
  """Number of right answers; raises InputError for an unknown set."""
  if set_name.startswith(_COUNTDOWN):
    return len(countdown.solutions(int(set_name.removeprefix(_COUNTDOWN))))
  return len(open_list.answer_set(set_name).items)


def written_forms(set_name: str) -> dict[str, str]:
  """The texts by which policies give right answers, and the canonical answer of each; raises InputError for an unknown set.

  Open lists accept more dress than can be listed; reports give the share of right samples outside this list.
  """
  if set_name.startswith(_COUNTDOWN):
    return countdown.written_forms(int(set_name.removeprefix(_COUNTDOWN)))
  return open_list.written_forms(set_name)


def families(set_name: str, prompt: str) -> dict[str, str] | None:
  """Families of a prompt by key: its set and wording, or its puzzle; None for prompts of other tasks."""
  if set_name.startswith(_COUNTDOWN):
    return {"puzzle": set_name}
  return open_list.families(set_name, prompt)


def clusters(split: str, set_name: str) -> tuple[tuple[str, ...], str]:
  """(keys, claim): the keys of `families` over which figures of a split generalise, and the population in words."""
  if set_name.startswith(_COUNTDOWN):
    return ("puzzle",), "new puzzles"
  return open_list.CLUSTERS.get(split, open_list.BOTH)
