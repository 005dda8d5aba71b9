"""Reward functions from a config's text: a short name or a dotted path, with settings if it takes any.

open_list                                   a function by its short name
my_package.rewards.brevity                  a function of the user's
length(target=50, slack=10)                 a reward with settings
my_package.rewards.Brevity(limit=3)         a user's class, or a function that returns a reward
"""

from collections.abc import Callable

from qempo_jax import call_text
from qempo_jax import errors
from qempo_jax.errors import InputError
from qempo_jax.rewards import checked

_HERE = "qempo_jax.rewards"
SHORT_NAMES = {
  "compression": f"{_HERE}.repetition.CompressionReward",
  "countdown": f"{_HERE}.countdown.countdown_reward",
  "distinctness": f"{_HERE}.distinctness.DistinctnessReward",
  "format": f"{_HERE}.format.FormatReward",
  "length": f"{_HERE}.length.LengthReward",
  "math": f"{_HERE}.math.MathReward",
  "ngram_distinctness": f"{_HERE}.distinctness.NgramDistinctnessReward",
  "open_list": f"{_HERE}.open_list.open_list_reward",
  "pairwise": f"{_HERE}.pairwise.PairwiseReward",
  "repetition": f"{_HERE}.repetition.RepetitionReward",
  "sentiment": f"{_HERE}.sentiment.SentimentReward",
  "tags": f"{_HERE}.format.TagsReward",
}


def resolve(text: str) -> Callable:
  """The reward function that a text describes.

  Args:
    text: as above; settings are Python literals, which are parsed and never evaluated.

  Returns:
    A function of (prompts, completions, **columns).

  Raises:
    InputError: the text cannot be parsed, the reward is unknown, or settings are missing or wrong.
  """
  if text.startswith("reward_model:"):
    return checked.load(text)
  path, arguments, keywords = call_text.parse(text, "reward")
  if "." not in path and path not in SHORT_NAMES:
    raise InputError(
      f"there is no reward {path!r}: give a dotted path, package.module.function, or one of {', '.join(SHORT_NAMES)}"
    )
  factory = checked.load(SHORT_NAMES.get(path, path))
  if arguments is None and not isinstance(factory, type):
    return factory
  with errors.user_code(
    f"reward {text!r} cannot be made:", f"are settings missing or too many? write {path}(name=value)"
  ):
    reward = factory(*(arguments or ()), **keywords)
  if not callable(reward):
    raise InputError(f"reward {text!r} makes a {type(reward).__name__}; it must make a reward function")
  return reward
