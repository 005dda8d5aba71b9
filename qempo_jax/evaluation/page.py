"""The report as one self-contained HTML page."""

from collections.abc import Mapping
from collections.abc import Sequence
import json

from qempo_jax.evaluation import page_completions
from qempo_jax.evaluation import page_diversity
from qempo_jax.evaluation import page_exact
from qempo_jax.evaluation import pages
from qempo_jax.evaluation.rows import SPLIT_LABELS

_COLUMNS = (
  ("reward", "Reward", 3),
  ("effective_answers", "Effective answers", 2),
  ("coverage", "Coverage of the set", 3),
  ("entropy", "Entropy (nats)", 2),
  ("entropy_per_token", "Entropy per token", 2),
  ("kl", "KL to reference (nats)", 2),
  ("length", "Length (tokens)", 1),
  ("words", "Length (words)", 1),
  ("truncation", "Truncated", 3),
  ("noncanonical", "Re-encodes to other tokens", 3),
  ("unscored", "Could not be judged", 3),
  ("repetition", "Repeated 4-grams", 3),
)


def render(results: Mapping, plots: Mapping[str, tuple[bytes, str]], rows: Sequence[Mapping]) -> str:
  """Renders the whole page.

  Args:
    results: from `summarise`.
    plots: PNG bytes and caption by name, in the order of display.
    rows: the evaluation rows, for sample completions.

  Returns:
    HTML.
  """
  verdict, said, sentences = headline(results)
  warnings = {}
  for item in results["warnings"]:
    warnings.setdefault((item["kind"], item["advice"]), []).append(item["message"])
  run = dict(results["run"])
  config = run.pop("config", "")
  first = {name: run.pop(name) for name in ("command", "seed") if name in run}
  return pages.render(
    "report.html",
    verdict=verdict,
    said=said,
    sentences=sentences,
    warnings=[(advice, messages) for (_, advice), messages in warnings.items()],
    plots=plots,
    level=f"{results['level']:.0%}",
    units=_units(results),
    splits=[_split(results, split) for split in results["comparisons"]],
    left_out=run.get("left_out", {}),
    certificates=[
      (f"{pages.label(method)}, {SPLIT_LABELS.get(split, split)}", certificate["words"])
      for method, entry in results["methods"].items()
      for split, figures in entry["splits"].items()
      for certificate in figures["certificates"]
    ],
    judged=_judged(results.get("judging")),
    completions=[page_completions.section(rows, *found) for found in results["answers"].items() if found[1]],
    run=first,
    rest_of_run=json.dumps(run, indent=2, default=str) if run else "",
    config_text=config if isinstance(config, str) else json.dumps(config, indent=2, default=str),
    bootstrap=results["bootstrap"],
  )


def headline(results: Mapping) -> tuple[str, str, list[str]]:
  """Verdict, headline and sentences on the main method on the main split.

  The main method is the last one of QEMPO's, else the last one; the main split is that of held-out wordings.
  """
  split = main_split(results)
  methods = [name for name, entry in results["methods"].items() if split in entry["splits"]]
  method = ([name for name in methods if name.lower().startswith("qempo")] or methods)[-1]
  name, where = pages.label(method), SPLIT_LABELS.get(split, split)
  figures = results["methods"][method]["splits"][split]
  certificate = figures["certificates"][0]
  floor = f"{_floor_in_words(certificate)} on {where}."
  said = {
    "MET": f"{name} keeps {floor}",
    "NOT MET": f"{name} is below {floor}",
    "UNDECIDED": f"The samples cannot tell whether {name} keeps {floor}",
  }[certificate["verdict"]]
  sentences = [certificate["words"]]
  comparison = results["comparisons"][split].get(method)
  if comparison and comparison["effective_answers_ratio"]["mean"] is not None:
    baseline = pages.label(comparison["baseline"])
    ratio, difference = comparison["effective_answers_ratio"], comparison["reward_difference"]
    sentences.append(
      f"Its effective number of acceptable answers is {pages.number(ratio)} times {baseline}'s {pages.ends(ratio)}; "
      f"its reward differs by {difference['mean']:+.3f} {pages.ends(difference, 3)}."
    )
    p_value = comparison.get("p_values_holm", {}).get("effective_answers")
    if p_value is not None:
      sentences[-1] = f"{sentences[-1][:-1]} (answers: p = {p_value:.3f} by Holm)."
    if exact := comparison.get("exact"):
      ratio, difference = exact["effective_answers_ratio"], exact["acceptable_difference"]
      sentences.append(
        f"By exact probabilities it is {pages.number(ratio)} times {baseline}'s {pages.ends(ratio)}, and P(acceptable) "
        f"differs by {difference['mean']:+.3f} {pages.ends(difference, 3)}."
      )
    if not comparison["matched"]:
      sentences.append("The rewards are not matched, so this is no comparison at equal quality.")
  for other, gain in figures["entropy_gains"].items():
    sentences.append(
      f"Its sequence entropy differs from {pages.label(other)}'s by {gain['mean']:+.2f} nats {pages.ends(gain)}."
    )
  return certificate["verdict"], said, sentences


def main_split(results: Mapping) -> str:
  """The split that headline and diversity plot speak of."""
  return "heldout_wordings" if "heldout_wordings" in results["comparisons"] else next(iter(results["comparisons"]))


def _floor_in_words(certificate):
  if certificate["constraint"] == "reward":
    return f"the reward floor {certificate['bound']:.3g}"
  return (
    f"the reference's reward less {-certificate['bound']:.3g}" if certificate["bound"] else "the reference's reward"
  )


def _split(results, split) -> dict:
  """The tables of one split's policies, their diversity and gains."""
  of_split = {name: entry["splits"][split] for name, entry in results["methods"].items() if split in entry["splits"]}
  columns = [column for column in _COLUMNS if column[0] != "words" or _lacks_tokens(of_split)]
  policies = []
  for method, figures in of_split.items():
    verdict = figures["certificates"][0]["verdict"]
    badge = pages.Cell(verdict, css=f"bold {verdict.lower().replace(' ', '-')}")
    policies.append((pages.label(method), *(pages.cell(figures[key], digits) for key, _, digits in columns), badge))
  return {
    "title": pages.title(split),
    "policies": (["Policy", *(label for _, label, _ in columns), "Floor"], policies),
    "is_main": split == main_split(results),
    "exact": page_exact.table(of_split),
    "diversity": page_diversity.tables(of_split),
    "gains": page_diversity.gains(of_split),
    "protocols": page_diversity.protocols(results.get("protocols", {}), split),
  }


def _lacks_tokens(of_split: Mapping[str, Mapping]) -> bool:
  return any(figures["length"]["mean"] is None for figures in of_split.values())


def _judged(found: Mapping | None) -> str:
  if not found:
    return ""
  rate, controlled = (f"{pages.number(found[key])} {pages.ends(found[key])}" for key in ("rate", "length_controlled"))
  return (
    f"Win rate {rate} over {found['num_pairs']} pairs of {found['num_prompts']} prompts, asked in both orders; at equal"
    f" lengths {controlled}. In {found['order_decided']:.0%} of pairs the order decided."
  )


def _units(results: Mapping) -> str:
  """Sampling units of each split's intervals, in words."""
  units = results["bootstrap"]["clusters"]
  parts = [f"{found['families']} on {split} (for {found['generalises_to']})" for split, found in units.items()]
  return "over " + "; ".join(parts) + "; another training seed is another policy"
