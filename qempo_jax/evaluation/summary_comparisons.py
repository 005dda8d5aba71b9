"""Comparisons of methods on their common prompts, and each method's answers to one prompt."""

from collections.abc import Mapping

import numpy as np

from qempo_jax.evaluation import comparisons
from qempo_jax.evaluation import functional
from qempo_jax.evaluation import intervals
from qempo_jax.evaluation import quality_floors
from qempo_jax.evaluation.rows import SplitSamples
from qempo_jax.evaluation.summary_figures import Settings
from qempo_jax.evaluation.summary_figures import for_bootstrap

MATCHED_REWARD = 0.03  # Two policies count as equally good if their rewards differ by no more.
_TESTED = ("reward", "entropy", "effective_answers")

Here = Mapping[str, SplitSamples]
Figures = Mapping[str, Mapping[str, np.ndarray]]


def shared_figures(here: Here, figures: Figures, name: str, methods) -> list[np.ndarray]:
  """A figure of each method over their common prompts, in one order."""
  shared = sorted(set.intersection(*(set(here[method].prompts) for method in methods)))
  columns = []
  for method in methods:
    position = {prompt: index for index, prompt in enumerate(here[method].prompts)}
    columns.append(figures[method][name][[position[prompt] for prompt in shared]])
  return columns


def shared_settings(here: Here, methods, settings: Settings) -> Settings:
  """The settings with the families of the methods' common prompts, in the order of `shared_figures`."""
  first = here[methods[0]]
  if first.clusters is None:
    return settings._replace(clusters=None)
  shared = set.intersection(*(set(here[method].prompts) for method in methods))
  chosen = [index for index, prompt in enumerate(first.prompts) if prompt in shared]
  return settings._replace(clusters=first.clusters.take(chosen) if chosen else None)


def diversity_lost(method: str, reference: str, here: Here, figures: Figures, settings: Settings) -> dict[str, dict]:
  """Different outputs a prompt that the reference has and the method lacks, by whether they were acceptable.

    total = wrong_answers + right_answers,   each the reference's count minus the method's, at equal numbers of samples.

  Losses among wrong answers are the price of quality; losses among right answers are narrowing. After Karouzos
  et al., "Where does output diversity collapse in post-training?", https://arxiv.org/abs/2604.16027.
  """
  if method == reference or reference not in here or not set(here[method].prompts) & set(here[reference].prompts):
    return {}
  sides = {
    name: shared_figures(here, figures, name, (reference, method)) for name in ("distinct_answers", "distinct_wrong")
  }
  (right, ours_right), (wrong, ours_wrong) = ([side.mean(axis=1) for side in sides[name]] for name in sides)
  settings = shared_settings(here, (reference, method), settings)
  pairs = {
    "total": (right + wrong, ours_right + ours_wrong),
    "wrong_answers": (wrong, ours_wrong),
    "right_answers": (right, ours_right),
  }
  return {name: intervals.paired_difference(*pair, **settings._asdict())._asdict() for name, pair in pairs.items()}


def against(baseline: str, here: Here, figures: Figures, settings: Settings) -> dict:
  """Each method against the baseline: differences with intervals, and p-values by Holm over all methods compared.

  If both methods have exact figures, `exact` compares them.
  """
  if baseline not in here:
    return {}
  compared = {}
  for method, samples in here.items():
    if method == baseline or not set(samples.prompts) & set(here[baseline].prompts):
      continue

    def pair(compare, name, of=figures, method=method):
      sides = shared_figures(here, of, name, (method, baseline))
      if not all(np.all(np.isfinite(side)) for side in sides):
        return intervals.Interval(np.nan, np.nan, np.nan)._asdict()
      shared = shared_settings(here, (method, baseline), settings)
      return compare(*(for_bootstrap(name, side) for side in sides), **shared._asdict())._asdict()

    def ratio(name, of=figures, method=method, seeds=samples.seeds):
      found = pair(intervals.paired_ratio, name, of)
      if seeds == here[baseline].seeds:
        ours, theirs = (side.mean(axis=0) for side in shared_figures(here, of, name, (method, baseline)))
        found["by_seed"] = [a / b if b else None for a, b in zip(ours, theirs, strict=True)]
        if len(seeds) > 1 and None not in found["by_seed"]:
          found["over_seeds"] = intervals.over_seeds(found["by_seed"], level=settings.level)._asdict()
      return found

    reward = pair(intervals.paired_difference, "reward")
    compared[method] = {
      "baseline": baseline,
      "num_prompts": len(set(samples.prompts) & set(here[baseline].prompts)),
      "matched": abs(reward["mean"]) <= MATCHED_REWARD,
      "reward_difference": reward,
      "effective_answers_ratio": ratio("effective_answers"),
      "entropy_difference": pair(intervals.paired_difference, "entropy"),
    }
    exact = {name: here[name].exact for name in (method, baseline)}
    if all(of.keys() >= {"acceptable", "effective_answers"} for of in exact.values()):
      compared[method]["exact"] = {
        "acceptable_difference": pair(intervals.paired_difference, "acceptable", exact),
        "effective_answers_ratio": ratio("effective_answers", exact),
      }
  _add_p_values(compared, baseline, here, figures, settings)
  return compared


def _add_p_values(compared, baseline, here, figures, settings) -> None:
  """Adds p-values over prompts or their families, see `comparisons.p_value`, Holm-corrected over the methods."""
  for name in _TESTED:
    tested, p_values = [], []
    for method in compared:
      ours, theirs = shared_figures(here, figures, name, (method, baseline))
      differences = ours.mean(axis=1) - theirs.mean(axis=1)
      if np.all(np.isfinite(differences)):
        tested.append(method)
        of = shared_settings(here, (method, baseline), settings)
        p_values.append(comparisons.p_value(differences, num_draws=of.num_draws, seed=of.seed, clusters=of.clusters))
    for method, adjusted in zip(tested, comparisons.holm(np.array(p_values)), strict=True):
      compared[method].setdefault("p_values_holm", {})[name] = float(adjusted)


def entropy_gains(method: str, others, here: Here, figures: Figures, settings: Settings) -> dict[str, dict]:
  """Sequence entropy minus each other policy's, in nats, with simultaneous intervals; see `quality_floors`."""
  others = [other for other in others if other in here and other != method]
  sides = shared_figures(here, figures, "entropy", (method, *others)) if others else []
  if not others or not sides[0].size or not all(np.all(np.isfinite(side)) for side in sides):
    return {}
  settings = shared_settings(here, (method, *others), settings)
  gains = quality_floors.entropy_gains(sides[0], dict(zip(others, sides[1:], strict=True)), **settings._asdict())
  return {name: gain._asdict() for name, gain in gains.items()}


def answer_counts(here: Here) -> dict:
  """Answer counts of every method's first seed, for the common prompt with a median number of acceptable answers."""
  shared = set.intersection(*(set(samples.prompts) for samples in here.values()))
  if not shared:
    return {}
  # First seed only: pooled seeds would look more diverse than any one policy is.
  answers = {
    method: {prompt: of_prompt[0] for prompt, of_prompt in zip(samples.prompts, samples.answers, strict=True)}
    for method, samples in here.items()
  }

  def num_acceptable(prompt):
    return sum(answer is not None for of_method in answers.values() for answer in of_method[prompt])

  prompt = sorted(shared, key=lambda prompt: (num_acceptable(prompt), prompt))[len(shared) // 2]
  samples = next(iter(here.values()))
  return {
    "prompt": prompt,
    "set_name": samples.set_names[samples.prompts.index(prompt)],
    "methods": {
      method: {
        "num_samples": len(of_method[prompt]),
        "num_not_acceptable": sum(answer is None for answer in of_method[prompt]),
        "counts": [list(item) for item in functional.answer_counts(of_method[prompt]).items()],
      }
      for method, of_method in answers.items()
    },
  }
