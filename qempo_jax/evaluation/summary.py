"""From evaluation rows to results: every figure with its interval, the certificates, and matched-quality comparisons.

Everything is a macro average over prompts: a figure is taken for each prompt (and seed) first. Intervals come from a
cluster bootstrap over prompts; seeds are averaged within a prompt, so they speak about prompts, not about what another
training seed would give: `by_seed` shows that spread.
"""

from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from qempo_jax.evaluation import alarms
from qempo_jax.evaluation import certificate as certificates
from qempo_jax.evaluation import functional
from qempo_jax.evaluation import intervals
from qempo_jax.evaluation import rows as evaluation_rows
from qempo_jax.rewards import open_list

MATCHED_REWARD = 0.03  # two policies count as equally good when their rewards differ by no more


def summarise(
  rows: Sequence[Mapping],
  *,
  floor: float,
  max_kl: Mapping[str, float] | None = None,
  reward_range: tuple[float, float] | None = (0.0, 1.0),
  baseline: str = "grpo",
  set_sizes: Mapping[str, int] | None = None,
  run: Mapping | None = None,
  level: float = 0.95,
  num_draws: int = 2000,
  seed: int = 0,
) -> dict:
  """Summarises evaluation rows into a dict that JSON can hold (None where there is no number).

  Args:
    rows: one mapping a sampled completion, with method, seed, split, set_name, prompt, sample, completion, answer,
      reward, log_prob and ref_log_prob (nats, sums over response tokens, EOS included), entropy (nats, the sum of the
      exact next-token entropies along the sample), num_tokens and truncated.
    floor: the reward floor certified for every method.
    max_kl: KL budget in nats of the methods that have one, certified as well.
    reward_range: least and greatest possible reward, for bounds that hold with few prompts too; None if unbounded.
    baseline: the method that the others are compared with.
    set_sizes: number of acceptable items by set, for sets that are not open-list sets.
    run: command, config, seed and the like, copied into the results.
    level: of intervals and bounds.
    num_draws: bootstrap draws.
    seed: of the bootstrap.

  Returns:
    The results: floor, level, methods, comparisons, answers (counts for one prompt a split), warnings and run.

  Raises:
    InputError: if rows are missing or malformed, or a set is unknown.
  """
  evaluation_rows.check_rows(rows)
  num_samples = evaluation_rows.samples_per_prompt(rows)
  arranged = evaluation_rows.arrange(rows, num_samples)
  methods = evaluation_rows.in_order((method for method, _ in arranged), evaluation_rows.METHODS)
  splits = evaluation_rows.in_order((split for _, split in arranged), evaluation_rows.SPLITS)
  figures = {key: _figures(samples, set_sizes or {}) for key, samples in arranged.items()}
  settings = {"level": level, "num_draws": num_draws, "seed": seed}

  results = {
    "floor": float(floor),
    "level": level,
    "bootstrap": {"num_draws": num_draws, "seed": seed, "clusters": "prompts"},
    "run": dict(run or {}),
    "methods": {},
    "comparisons": {},
    "answers": {},
  }
  for method in methods:
    of_method = {split: arranged[method, split] for split in splits if (method, split) in arranged}
    budget = (max_kl or {}).get(method)
    results["methods"][method] = {
      "seeds": sorted({value for samples in of_method.values() for value in samples.seeds}),
      "splits": {
        split: _split_summary(samples, figures[method, split], floor, budget, reward_range, settings)
        for split, samples in of_method.items()
      },
    }
  for split in splits:
    here = {method: arranged[method, split] for method in methods if (method, split) in arranged}
    results["comparisons"][split] = _comparisons(here, split, figures, baseline, settings)
    results["answers"][split] = _answer_counts(here)
  results["warnings"] = alarms.evaluation_warnings(results)
  return _plain(results)


def _figures(samples, set_sizes):
  """Every figure as [prompts, seeds * samples] where a sample has one, else [prompts, seeds]."""
  num_prompts = len(samples.prompts)
  raw = samples.figures
  statistics = [
    [
      functional.answer_statistics(answers, set_size=set_sizes.get(name) or len(open_list.answer_set(name).items))
      for answers in of_prompt
    ]
    for name, of_prompt in zip(samples.set_names, samples.answers, strict=True)
  ]

  def per_prompt(field):
    return np.array([[getattr(cell, field) for cell in line] for line in statistics], float)

  per_sample = {
    "reward": raw["reward"],
    "entropy": raw["entropy"],
    "kl": raw["log_prob"] - raw["ref_log_prob"],
    "length": raw["num_tokens"],
    "truncation": raw["truncated"],
  }
  return {name: values.reshape(num_prompts, -1) for name, values in per_sample.items()} | {
    "entropy_per_token": raw["entropy"].mean(axis=2) / np.maximum(raw["num_tokens"].mean(axis=2), 1),
    "effective_answers": per_prompt("effective_answers"),
    "coverage": per_prompt("coverage"),
    "distinct_answers": per_prompt("num_distinct"),
    "answer_entropy": per_prompt("entropy"),
    "answer_entropy_miller_madow": per_prompt("entropy_miller_madow"),
  }


_PER_SAMPLE = ("reward", "entropy", "kl", "length", "truncation")


def _for_bootstrap(name, values):
  """Figures of samples keep them, for the two-stage bootstrap; figures of prompts are averaged over seeds."""
  return values if name in _PER_SAMPLE else values.mean(axis=1)


def _split_summary(samples, figures, floor, max_kl, reward_range, settings):
  summary = {
    "num_prompts": len(samples.prompts),
    "samples_per_prompt": samples.figures["reward"].shape[2],
    "num_samples": samples.figures["reward"].size,
    "samples_left_out": samples.dropped,
    "prompts_without_answer": float(np.mean(figures["distinct_answers"] == 0)),
  }
  for name, values in figures.items():
    interval = intervals.mean_interval(_for_bootstrap(name, values), **settings)
    by_seed = values.reshape(len(samples.prompts), len(samples.seeds), -1).mean(axis=(0, 2))
    summary[name] = interval._asdict() | {"by_seed": [float(mean) for mean in by_seed]}
  bounds = {"level": settings["level"], "seed": settings["seed"]}
  found = [
    certificates.certify(
      figures["reward"], constraint="reward", bound=floor, direction="at least", value_range=reward_range, **bounds
    )
  ]
  if max_kl is not None:
    found.append(certificates.certify(figures["kl"], constraint="kl", bound=max_kl, direction="at most", **bounds))
  summary["certificates"] = [item._asdict() | {"words": certificates.in_words(item)} for item in found]
  return summary


def _comparisons(here, split, figures, baseline, settings):
  """Each method against the baseline over the prompts that both have."""
  if baseline not in here:
    return {}
  compared = {}
  for method, samples in here.items():
    shared = sorted(set(samples.prompts) & set(here[baseline].prompts))
    if method == baseline or not shared:
      continue

    def shared_figures(name, which, shared=shared):
      position = {prompt: index for index, prompt in enumerate(here[which].prompts)}
      return figures[which, split][name][[position[prompt] for prompt in shared]]

    def pair(compare, name, method=method, shared_figures=shared_figures):
      sides = (_for_bootstrap(name, shared_figures(name, which)) for which in (method, baseline))
      return compare(*sides, **settings)._asdict()

    reward = pair(intervals.paired_difference, "reward")
    ratio = pair(intervals.paired_ratio, "effective_answers")
    if samples.seeds == here[baseline].seeds:
      ours, theirs = (shared_figures("effective_answers", which).mean(axis=0) for which in (method, baseline))
      ratio["by_seed"] = [a / b if b else None for a, b in zip(ours, theirs, strict=True)]
    compared[method] = {
      "baseline": baseline,
      "num_prompts": len(shared),
      "matched": abs(reward["mean"]) <= MATCHED_REWARD,
      "reward_difference": reward,
      "effective_answers_ratio": ratio,
      "entropy_difference": pair(intervals.paired_difference, "entropy"),
    }
  return compared


def _answer_counts(here):
  """Answer counts of every method's first seed, for the shared prompt with a middling number of acceptable answers."""
  shared = set.intersection(*(set(samples.prompts) for samples in here.values()))
  if not shared:
    return {}
  answers = {method: _answers_by_prompt(samples) for method, samples in here.items()}

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


def _answers_by_prompt(samples):
  """Of the first seed only: pooled seeds would look more diverse than any one policy is."""
  return {prompt: of_prompt[0] for prompt, of_prompt in zip(samples.prompts, samples.answers, strict=True)}


def _plain(value):
  """The same structure in types that JSON has; numbers that are not finite become None."""
  if isinstance(value, Mapping):
    return {str(key): _plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(item) for item in value]
  if isinstance(value, (bool, np.bool_)):
    return bool(value)
  if isinstance(value, (int, np.integer)):
    return int(value)
  if isinstance(value, (float, np.floating)):
    return float(value) if np.isfinite(value) else None
  return value
