"""Tasks whose right answers are all known, by the name of their set: which answer a response is, and how many there are."""

from qempo_jax.rewards import countdown
from qempo_jax.rewards import open_list

_COUNTDOWN = "countdown "


def countdown_set(target: int) -> str:
  """The name of the set of a countdown puzzle's right answers."""
  return f"{_COUNTDOWN}{target}"


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
