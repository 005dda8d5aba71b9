"""From evaluation rows to results: every figure with its interval, certificates, and matched-quality comparisons.

Everything is a macro average over prompts: a figure is computed for each prompt (and seed) first. Intervals come from a
cluster bootstrap over prompts, or over families of prompts if the task or `cluster` names them. Seeds are averaged
within a prompt, so `low` and `high` cover prompts, not other training seeds. `by_seed` has each seed's mean, `by_prompt`
each prompt's, and `over_seeds` Student's interval over seeds on these same prompts.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import functools

import numpy as np

from qempo_jax.errors import InputError
from qempo_jax.evaluation import above_floor
from qempo_jax.evaluation import alarms
from qempo_jax.evaluation import certificate as certificates
from qempo_jax.evaluation import intervals
from qempo_jax.evaluation import quality_floors
from qempo_jax.evaluation import rows as evaluation_rows
from qempo_jax.evaluation import summary_comparisons
from qempo_jax.evaluation import summary_exact
from qempo_jax.evaluation import summary_figures
from qempo_jax.evaluation.summary_comparisons import MATCHED_REWARD as MATCHED_REWARD

REFERENCE = "base"


def summarise(
  rows: Sequence[Mapping],
  *,
  floor: float,
  floor_kind: quality_floors.Kind = "absolute",
  acceptable: float | None = None,
  max_kl: Mapping[str, float] | None = None,
  reward_range: tuple[float, float] | None = (0.0, 1.0),
  baseline: str = "",
  set_sizes: Mapping[str, int] | None = None,
  metrics: Mapping[str, above_floor.Metric] | None = None,
  matched: int | None = None,
  look: int = 1,
  planned_looks: int | None = 1,
  cluster: Sequence[str] = (),
  run: Mapping | None = None,
  level: float = 0.95,
  num_draws: int = 2000,
  seed: int = 0,
) -> dict:
  """Summarises evaluation rows into a JSON-able dict, with None for undefined numbers.

  Args:
    rows: one mapping a sampled completion, with method, seed, split, set_name ("" for none), prompt, sample,
      completion, answer, reward, log_prob and ref_log_prob (nats, sums over response tokens, EOS included), entropy
      (nats, the sum of the exact next-token entropies along the sample), num_tokens and truncated. All but
      reward may be None. Optional: noncanonical, True if the completion's text encodes to other tokens than were sampled;
      unscored, True if it could not be judged and has the least reward;
      exact, on the first sample of a prompt: its exact figures by name (see `exact_answers`).
    floor: reward floor certified for every method, of kind `floor_kind`.
    floor_kind: see `quality_floors.certify_floor`; the relative kinds need rows of the method "base".
    acceptable: least reward of an acceptable output; None: the floor.
    max_kl: KL budget in nats by method, also certified.
    reward_range: least and greatest possible reward, for bounds that hold with few prompts too; None: unbounded.
    baseline: method that the others are compared with; "": GRPO, without samples of it the reference, else the first.
    set_sizes: number of acceptable items by set, for sets that are not open-list sets.
    metrics: diversity metrics by name; None: the lexical ones. See `diversity_metrics`.
    matched: acceptable outputs a prompt in diversity above the floor, see `above_floor.diversity`; 0: all; None: a
      quarter of the split's samples a prompt, but at least 2.
    look: index of this look at growing data, from 1.
    planned_looks: largest number of looks; None: no plan.
    cluster: columns of the rows whose values are families of prompts, at most two (crossed); empty: the task's own
      families; ("prompt",): independent prompts. See `clusters`.
    run: command, config, seed and the like, copied into the results.
    level: confidence level of intervals and bounds.
    num_draws: number of bootstrap draws.
    seed: seed of the bootstrap.

  Returns:
    The results: floor, floors (absolute, by split), level, methods, comparisons, answers (counts for one prompt a
    split), warnings and run.

  Raises:
    InputError: rows are missing or malformed, or a set is unknown.
  """
  evaluation_rows.check_rows(rows, reward_range)
  num_samples = evaluation_rows.samples_per_prompt(rows)
  floors = absolute_floors(rows, floor=floor, kind=floor_kind)
  least = {split: of_split if acceptable is None else acceptable for split, of_split in floors.items()}
  arranged = evaluation_rows.arrange(rows, num_samples, least, cluster)
  methods = evaluation_rows.in_order((method for method, _ in arranged), evaluation_rows.METHODS)
  splits = evaluation_rows.in_order((split for _, split in arranged), evaluation_rows.SPLITS)
  others = REFERENCE if REFERENCE in methods else methods[0]
  baseline = baseline or next((name for name in methods if name.startswith("grpo")), others)
  if baseline not in methods:
    raise InputError(f"evaluation.baseline is {baseline!r}, of which there are no samples: name one of {methods}.")

  results = {
    "floor": float(floor),
    "floor_kind": floor_kind,
    "floors": floors,
    "level": level,
    "bootstrap": {"num_draws": num_draws, "seed": seed, "clusters": {}},
    "run": dict(run or {}),
    "methods": {},
    "comparisons": {},
    "answers": {},
  }
  certify = functools.partial(
    _certificates, floor=floor, kind=floor_kind, reward_range=reward_range, max_kl=max_kl or {}, level=level, seed=seed,
    look=look, planned_looks=planned_looks,
  )  # fmt: skip
  for method in methods:
    seeds = sorted({value for (name, _), samples in arranged.items() if name == method for value in samples.seeds})
    results["methods"][method] = {"seeds": seeds, "splits": {}}
  for split in splits:
    here = {method: arranged[method, split] for method in methods if (method, split) in arranged}
    figures = {method: summary_figures.figures(samples, set_sizes or {}) for method, samples in here.items()}
    for method, samples in here.items():
      settings = summary_figures.Settings(level, num_draws, seed, samples.clusters)
      results["bootstrap"]["clusters"][split] = _of_families(samples.clusters)
      results["methods"][method]["splits"][split] = {
        **_means(samples, figures[method], settings),
        "by_prompt": _by_prompt(samples, figures[method]),
        "certificates": certify(method, here, figures),
        **_of_method(
          method, here, figures, settings,
          baseline=baseline,
          acceptable=least[split],
          metrics=above_floor.LEXICAL_METRICS if metrics is None else metrics,
          matched=(max(2, num_samples[split] // 4) if matched is None else matched) or None,
        ),
      }  # fmt: skip
    results["comparisons"][split] = summary_comparisons.against(baseline, here, figures, settings)
    results["answers"][split] = summary_comparisons.answer_counts(here)
  results["warnings"] = alarms.evaluation_warnings(results)
  return plain(results)


def _of_method(method, here, figures, settings, *, baseline, acceptable, metrics, matched) -> dict:
  """Comparisons with the reference and the baseline, exact figures, solutions and diversity of one method on one split."""
  samples, others = here[method], dict.fromkeys((REFERENCE, baseline))
  return {
    "entropy_gains": summary_comparisons.entropy_gains(method, others, here, figures, settings),
    "diversity_lost": summary_comparisons.diversity_lost(method, REFERENCE, here, figures, settings),
    "exact": summary_exact.exact_figures(samples, figures[method], settings),
    "solutions": summary_figures.solution_figures(samples, settings=settings),
    "diversity": summary_figures.diversity_figures(
      samples, metrics=metrics, acceptable=acceptable, matched=matched, settings=settings
    ),
  }


def absolute_floors(rows: Sequence[Mapping], *, floor: float, kind: quality_floors.Kind) -> dict[str, float]:
  """Absolute reward floor of each split, from a floor of any kind.

  Raises:
    InputError: the kind is unknown, or it needs the reference and the split has no rows of it.
  """
  floors = {}
  for split in dict.fromkeys(row["split"] for row in rows):
    reference = [row["reward"] for row in rows if (row["method"], row["split"]) == (REFERENCE, split)]
    if kind != "absolute" and not reference:
      raise InputError(
        f"The floor {kind!r} needs samples of the reference, method {REFERENCE!r}, on {split}: add them, or set "
        "evaluation.floor=NUMBER and evaluation.floor_kind=absolute."
      )
    if kind == "reference minus":
      floors[split] = float(np.mean(reference)) - floor
    else:
      floors[split] = float(np.quantile(reference, floor)) if kind == "reference quantile" else float(floor)
  return floors


def _certificates(method, here, figures, *, floor, kind, reward_range, max_kl, **bounds) -> list[dict]:
  """Certificates of one method's floor, and of its KL budget where it has one.

  A floor relative to the reference is certified on the prompts that both have.
  """
  bounds["clusters"] = clusters = here[method].clusters
  rewards, reference = figures[method]["reward"], None
  if kind == "reference minus":
    shared = summary_comparisons.shared_settings(here, (method, REFERENCE), summary_figures.Settings(0, 0, 0))
    clusters = shared.clusters
    rewards, reference = summary_comparisons.shared_figures(here, figures, "reward", (method, REFERENCE))
  elif kind == "reference quantile":
    reference = figures[REFERENCE]["reward"]
  found = [
    quality_floors.certify_floor(
      rewards, kind=kind, amount=floor, reference_rewards=reference, value_range=reward_range,
      **bounds | {"clusters": clusters},
    )
  ]  # fmt: skip
  kl = figures[method]["kl"]
  if max_kl.get(method) is not None and np.all(np.isfinite(kl)):
    found.append(certificates.certify(kl, constraint="kl", bound=max_kl[method], direction="at most", **bounds))
  return [item._asdict() | {"words": certificates.in_words(item)} for item in found]


def _of_families(found) -> dict:
  """Sampling unit of a split's intervals and certificates, and the population they generalise to."""
  if found is None:
    return {"keys": [], "families": "prompts", "generalises_to": certificates.NEW_PROMPTS}
  return {"keys": found.keys, "families": found.in_words(), "generalises_to": found.claim}


def _means(samples, figures, settings) -> dict:
  """Counts, and every figure's mean with its interval and by seed."""
  summary = {
    "num_prompts": len(samples.prompts),
    "samples_per_prompt": samples.figures["reward"].shape[2],
    "num_samples": samples.figures["reward"].size,
    "samples_left_out": samples.dropped,
    "prompts_without_answer": float(np.mean(figures["distinct_answers"] == 0)),
  }
  for name, values in figures.items():
    interval = summary_figures.interval(summary_figures.for_bootstrap(name, values), settings)
    by_seed = values.reshape(len(samples.prompts), len(samples.seeds), -1).mean(axis=(0, 2))
    summary[name] = interval._asdict() | {"by_seed": [float(mean) for mean in by_seed]}
    if len(by_seed) > 1:
      summary[name]["over_seeds"] = intervals.over_seeds(by_seed, level=settings.level)._asdict()
  return summary


def _by_prompt(samples, figures) -> dict:
  """Each figure's mean by prompt and seed, [prompts][seeds], with the prompts' families: all that intervals are made of."""
  shape = (len(samples.prompts), len(samples.seeds), -1)
  means = {name: values.reshape(shape).mean(axis=2) for name, values in figures.items()}
  families = {} if samples.clusters is None else dict(zip(samples.clusters.keys, samples.clusters.labels.tolist()))
  rounded = {name: [[float(f"{value:.6g}") for value in row] for row in table] for name, table in means.items()}
  return {"prompts": samples.prompts, "families": families, "figures": rounded}


def plain(value):
  """The same structure in JSON types; numbers that are not finite become None."""
  if isinstance(value, Mapping):
    return {str(key): plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [plain(item) for item in value]
  if isinstance(value, (bool, np.bool_)):
    return bool(value)
  if isinstance(value, (int, np.integer)):
    return int(value)
  if isinstance(value, (float, np.floating)):
    return float(value) if np.isfinite(value) else None
  return value
