"""Tasks whose right answers are all known, by the name of their set: which answer a response is, and how many there are."""

from qempo_jax.rewards import countdown
from qempo_jax.rewards import open_list

_COUNTDOWN = "countdown "


def countdown_set(target: int) -> str:
  """The name of the set of a countdown puzzle's right answers."""
  return f"{_COUNTDOWN}{target}"


def is_known(set_name: object) -> bool:
  """Whether this is the name of a set whose right answers are all known."""
  if not isinstance(set_name, str):
    return False
  return set_name in open_list.SETS or set_name.removeprefix(_COUNTDOWN).isdecimal() and set_name.startswith(_COUNTDOWN)


def parse_answer(completion: str, set_name: str) -> str | None:
  """The canonical right answer that a completion is, or None; raises InputError for an unknown set."""
  if set_name.startswith(_COUNTDOWN):
    return countdown.solution(completion, int(set_name.removeprefix(_COUNTDOWN)))
  return open_list.parse_answer(completion, set_name)


def set_size(set_name: str) -> int:
  """How many right answers there are; raises InputError for an unknown set."""
  if set_name.startswith(_COUNTDOWN):
    return len(countdown.solutions(int(set_name.removeprefix(_COUNTDOWN))))
  return len(open_list.answer_set(set_name).items)


def families(set_name: str, prompt: str) -> dict[str, str] | None:
  """By key the family of one of these tasks' prompts: its set and wording, or its puzzle; None for any other prompt."""
  if set_name.startswith(_COUNTDOWN):
    return {"puzzle": set_name}
  return open_list.families(set_name, prompt)


def clusters(split: str, set_name: str) -> tuple[tuple[str, ...], str]:
  """(keys, claim): the keys of `families` over which figures of a split generalise, and the population in words."""
  if set_name.startswith(_COUNTDOWN):
    return ("puzzle",), "new puzzles"
  return open_list.CLUSTERS.get(split, open_list.BOTH)
