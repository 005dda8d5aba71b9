"""Warnings about a run, in words, each with advice: collapse, explosion, truncation, an unmet floor."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence

from qempo_jax.evaluation import summary_exact
from qempo_jax.evaluation.rows import METHOD_LABELS
from qempo_jax.evaluation.rows import SPLIT_LABELS

TRUNCATION_LIMIT = 0.2
FEW_PROMPTS = 15
FEW_TEXTS = 4  # Diversity figures of fewer texts say more about their number than about the policy.
UNSCORED_LIMIT = 0.01


def evaluation_warnings(results: Mapping) -> list[dict]:
  """Warnings about evaluation results under construction: a list of {kind, method, split, message, advice}."""
  warnings, seen = [], set()
  for method, entry in results["methods"].items():
    for split, figures in entry["splits"].items():
      where = SPLIT_LABELS.get(split, split)
      base = results["methods"].get("base", {}).get("splits", {}).get(split)
      for kind, message in _of_method(figures, base, method):
        warnings.append(_warning(kind, method, split, f"{METHOD_LABELS.get(method, method)} on {where}: {message}"))
      for kind, message in _of_samples(figures):
        if (kind, split) not in seen:
          seen.add((kind, split))
          warnings.append(_warning(kind, None, split, f"{where[0].upper()}{where[1:]}: {message}"))
  return warnings


def training_warnings(metrics: Mapping[str, Sequence[Mapping]]) -> list[dict]:
  """Warnings about training: truncation above the limit in the last tenth of the steps."""
  warnings = []
  for method, steps in metrics.items():
    late = [row["truncation"] for row in steps[-max(1, len(steps) // 10) :] if row.get("truncation") is not None]
    if late and sum(late) / len(late) > TRUNCATION_LIMIT:
      message = f"{METHOD_LABELS.get(method, method)} in training: {sum(late) / len(late):.0%} of responses were cut."
      warnings.append(_warning("truncation", method, None, message))
  return warnings


_ADVICE = {
  "truncation": "Raise the response length, or make stopping part of the reward.",
  "unscored": "They count as the least reward. Look at these completions, or raise the reward's time-out.",
  "kl": "Sampler and scorer disagree: use one temperature and truncation, and count the ending EOS in both.",
  "floor": "Train longer, lower the floor, or approach it more slowly (smaller dual step).",
  "undecided": "Sample more prompts; the certificate says about how many.",
  "collapse": "Approach the floor from the diverse side: start with a larger entropy weight, or raise the KL budget.",
  "explosion": "Entropy is being spent on unacceptable text: add a KL budget, raise the floor, or shorten responses.",
  "few_prompts": "Use more prompts: samples of the same prompt cannot replace them.",
  "few_texts": "Draw at least 16 samples of each prompt, or set evaluation.matched to 4 or more.",
  "unequal_samples": "Draw equally many samples of every prompt with every method.",
  "exact": "Sampler and scorer disagree: use one temperature, and compute.kv_cache=float32; samples may be of another policy.",
  "unlisted": "Exact P(acceptable) and answers are lower bounds here; read the sampled figures beside them.",
  "no_answer": "These prompts count as 0 answers; look at their completions.",
}
KINDS = tuple(_ADVICE)


def few_texts(diversity: Mapping) -> bool:
  """True if diversity above the floor compares fewer than `FEW_TEXTS` outputs a prompt."""
  return (diversity["matched"] or diversity["acceptable_per_prompt"]) < FEW_TEXTS


def _warning(kind, method, split, message):
  return {"kind": kind, "method": method, "split": split, "message": message, "advice": _ADVICE[kind]}


def _of_samples(figures) -> Iterable[tuple[str, str]]:
  """Warnings about a split, independent of the method."""
  if figures["num_prompts"] < FEW_PROMPTS:
    yield "few_prompts", f"only {figures['num_prompts']} prompts; intervals over so few are rough."
  if few_texts(figures["diversity"]):
    yield (
      "few_texts",
      f"diversity above the floor is of fewer than {FEW_TEXTS} outputs a prompt, too few to rank policies.",
    )
  if figures["samples_left_out"]:
    kept = figures["samples_per_prompt"]
    yield "unequal_samples", f"only the first {kept} samples of each prompt were used, as many as every method has."


def _of_method(figures, base, method) -> Iterable[tuple[str, str]]:
  trained = method != "base"
  floor = figures["certificates"][0]
  if trained and floor["verdict"] == "NOT MET":
    yield "floor", f"the reward floor {floor['bound']:.3g} is not met (estimate {floor['estimate']:.3f})."
  if trained and floor["verdict"] == "UNDECIDED":
    yield "undecided", f"the samples cannot tell whether the reward floor {floor['bound']:.3g} is met."
  if figures["truncation"]["mean"] > TRUNCATION_LIMIT:
    yield "truncation", f"{figures['truncation']['mean']:.0%} of responses were cut at the length limit."
  if (figures["unscored"]["mean"] or 0.0) > UNSCORED_LIMIT:
    yield "unscored", f"{figures['unscored']['mean']:.1%} of responses could not be judged."
  if trained and base and _collapsed(figures, base):
    effective, before = _effective(figures, base)
    yield "collapse", f"{effective:.1f} effective answers are left of the base model's {before:.1f}."
  if trained and base and _exploded(figures, base):
    entropy, before = figures["entropy"]["mean"], base["entropy"]["mean"]
    yield "explosion", f"entropy rose from {before:.1f} to {entropy:.1f} nats while the reward is below the floor."
  if figures["kl"]["high"] < 0:
    yield "kl", f"the estimated KL to the reference is negative ({figures['kl']['mean']:.3f} nats)."
  exact = figures.get("exact")
  if exact and abs(exact["standard_errors"]) > summary_exact.SURELY:
    off = {name: f"{value['mean']:+.3g}" for name, value in exact["difference"].items()}
    yield (
      "exact",
      f"sampled figures differ from exact ones: P(acceptable) by {off['acceptable']}, entropy by {off['entropy']} nats.",
    )
  if exact and exact["unlisted"]["mean"] > summary_exact.UNLISTED * exact["sampled"]["acceptable"]["mean"]:
    share = exact["unlisted"]["mean"] / exact["sampled"]["acceptable"]["mean"]
    yield "unlisted", f"{share:.0%} of acceptable samples are written in no listed way."
  if trained and figures["prompts_without_answer"] > 0:
    yield "no_answer", f"{figures['prompts_without_answer']:.0%} of prompts have no acceptable answer."


def _collapsed(figures, base):
  effective, before = _effective(figures, base)
  return effective < 2 and effective < 0.5 * before


def _effective(figures, base) -> tuple[float, float]:
  """Effective acceptable answers of both, exact where both are."""
  both = [side.get("exact") or {} for side in (figures, base)]
  sides = both if all(side.get("effective_answers", {}).get("mean") is not None for side in both) else (figures, base)
  return tuple(side["effective_answers"]["mean"] for side in sides)


def _exploded(figures, base):
  return (
    figures["entropy"]["mean"] > 2 * base["entropy"]["mean"]
    and figures["reward"]["mean"] < figures["certificates"][0]["bound"]
  )
