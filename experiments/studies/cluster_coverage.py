"""Error rates of certificates, intervals and tests when prompts come in families of sets and wordings, by simulation.

  python -m experiments.studies.cluster_coverage            # continues docs/results/cluster_coverage.json, prints tables
  python -m experiments.studies.cluster_coverage --tables   # prints the tables of that file

A prompt is one of 5 sets in one of 8 wordings (40 x 40 in the larger designs), with 32 samples. Its probability of
reward 1 has the logit m + set + wording + cell, with normal effects. m makes the mean over the claim's population 0.8,
the floor itself, so that every MET is false. Differences between two methods have the same effects and mean 0.
"""

import argparse
import functools
import json
import pathlib

import numpy as np

from qempo_jax.evaluation import certificate
from qempo_jax.evaluation import clusters
from qempo_jax.evaluation import comparisons
from qempo_jax.evaluation import intervals

PATH = pathlib.Path(__file__).parents[2] / "docs" / "results" / "cluster_coverage.json"
SMALL, LARGE = (5, 8), (40, 40)  # sets, wordings
SAMPLES, FLOOR, NOMINAL = 32, 0.8, 0.05
# Standard deviations of set, wording and cell effects; keys whose families are new under the claim.
BOTH, NEW_WORDINGS = ("set_name", "wording"), ("wording",)
FLOORS = (
  (0.0, 0.0, 1.0, BOTH),
  (0.5, 0.3, 0.3, BOTH),
  (0.7, 0.7, 0.3, BOTH),
  (1.0, 0.0, 0.3, BOTH),
  (0.5, 1.0, 0.5, NEW_WORDINGS),
  (0.5, 1.5, 0.3, NEW_WORDINGS),
)
LARGER = ((0.7, 0.7, 0.3, BOTH), (1.0, 0.0, 0.3, BOTH), (0.5, 1.5, 0.3, NEW_WORDINGS))  # large enough for a MET
DIFFERENCES = (  # the last number is the prompt's own standard deviation
  (0.0, 0.0, 1.0, BOTH),
  (0.5, 0.0, 1.0, BOTH),
  (1.0, 0.0, 1.0, BOTH),
  (1.0, 0.0, 0.5, BOTH),
  (0.7, 0.7, 0.5, BOTH),
  (0.0, 1.0, 0.5, NEW_WORDINGS),
)


def families_of(keys, shape) -> clusters.Clusters:
  """Returns the families of all prompts, set by set."""
  columns = {"set_name": np.repeat(range(shape[0]), shape[1]), "wording": np.tile(range(shape[1]), shape[0])}
  return clusters.of({key: columns[key] for key in keys})


def effects(
  rng: np.random.Generator, deviations, count: int, shape, fixed_sets: np.ndarray | None = None
) -> np.ndarray:
  """Draws [count, sets, wordings] sums of set, wording and cell effects; `fixed_sets` gives the set effects."""
  a, b, c = deviations
  set_effects = a * rng.normal(size=(count, shape[0], 1)) if fixed_sets is None else fixed_sets[None, :, None]
  return set_effects + b * rng.normal(size=(count, 1, shape[1])) + c * rng.normal(size=(count, *shape))


def shift(logits: np.ndarray) -> float:
  """Solves for m such that the mean of sigmoid(m + logits) is the floor."""
  low, high = -10.0, 10.0
  for _ in range(25):
    middle = (low + high) / 2
    low, high = (middle, high) if np.mean(1 / (1 + np.exp(-middle - logits))) < FLOOR else (low, middle)
  return low


def false_met(design, repetitions: int, seed: int, shape=SMALL) -> dict:
  """Rate at which a floor equal to the true mean is MET, by families and by prompts."""
  *deviations, keys = design
  rng = np.random.default_rng(seed)
  claim_families = families_of(keys, shape)
  met = {"families": 0, "prompts": 0}
  m = None
  population = max(16_000, 100 * shape[0] * shape[1]) if keys == NEW_WORDINGS else 800_000  # prompts
  for trial in range(repetitions):
    fixed = deviations[0] * rng.normal(size=shape[0]) if keys == NEW_WORDINGS else None
    if m is None or fixed is not None:
      m = shift(effects(rng, deviations, population // (shape[0] * shape[1]), shape, fixed))
    chances = 1 / (1 + np.exp(-m - effects(rng, deviations, 1, shape, fixed)[0].ravel()))
    values = rng.random((chances.size, SAMPLES)) < chances[:, None]
    for name, families in (("families", claim_families), ("prompts", None)):
      result = certificate.certify(
          values, constraint="reward", bound=FLOOR, direction="at least", value_range=(0.0, 1.0), num_draws=1000,
          seed=trial, clusters=families,
      )  # fmt: skip
      met[name] += result.verdict == "MET"
  return {name: count / repetitions for name, count in met.items()}


def false_findings(design, repetitions: int, seed: int, shape=SMALL) -> dict:
  """Rates at which a test finds an absent difference, and an interval excludes 0, by families and by prompts."""
  *deviations, keys = design
  rng = np.random.default_rng(seed)
  claim_families = families_of(keys, shape)
  wrong = {"test, families": 0, "interval, families": 0, "test, prompts": 0, "interval, prompts": 0}
  for trial in range(repetitions):
    values = effects(rng, deviations, 1, shape)[0].ravel()
    for name, families in (("families", claim_families), ("prompts", None)):
      settings = {"num_draws": 1000, "seed": trial, "clusters": families}
      interval = intervals.mean_interval(values, **settings)
      wrong[f"interval, {name}"] += not interval.low <= 0 <= interval.high
      wrong[f"test, {name}"] += comparisons.p_value(values, **settings) <= NOMINAL
  return {name: count / repetitions for name, count in wrong.items()}


def table(rows: list[dict], study: str) -> list[str]:
  """Formats the error rates of one study as a Markdown table."""
  study_rows = [row for row in rows if row["study"] == study]
  names = list(study_rows[0]["rates"])
  lines = [f"| sd of set / wording / cell | claim | {' | '.join(names)} |", f"|{'---|' * (2 + len(names))}"]
  for row in study_rows:
    *deviations, keys = row["design"]
    claim = "new sets and wordings" if tuple(keys) == BOTH else "new wordings"
    rates = " | ".join(f"{100 * row['rates'][name]:.1f} %" for name in names)
    lines.append(f"| {' / '.join(f'{value:g}' for value in deviations)} | {claim} | {rates} |")
  return lines


def main() -> None:
  """Simulates the designs missing in the file, and writes after each."""
  parser = argparse.ArgumentParser(description="Error rates where prompts come in families.")
  parser.add_argument("--repetitions", type=int, default=400, help="of each design")
  parser.add_argument("--tables", action="store_true", help="simulate nothing")
  flags = parser.parse_args()
  rows = json.loads(PATH.read_text(encoding="utf-8"))["rows"] if PATH.is_file() else []
  studies = {
    "false MET": (FLOORS, false_met),
    "false MET, larger": (LARGER, functools.partial(false_met, shape=LARGE)),
    "false findings": (DIFFERENCES, false_findings),
  }
  for study, (designs, simulate) in studies.items():
    for index, design in enumerate(designs):
      label = [*design[:-1], list(design[-1])]
      if flags.tables or any((row["study"], row["design"]) == (study, label) for row in rows):
        continue
      rates = simulate(design, flags.repetitions, seed=index)
      rows.append({"study": study, "design": label, "repetitions": flags.repetitions, "rates": rates})
      PATH.write_text(json.dumps({"nominal": NOMINAL, "rows": rows}, indent=1) + "\n", encoding="utf-8")
  for study in studies:
    print("\n".join(["", study, "", *table(rows, study)]))


if __name__ == "__main__":
  main()
