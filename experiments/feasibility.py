"""Before training: what floor is in reach, and which multipliers, KL and entropy to expect, where samples can tell."""

import json
import pathlib
import sys
import time

import numpy as np
from rich.console import Console

from experiments import build
from experiments import cli
from experiments.compile import dry_run as dry_runs
from experiments.configured import constraints as build_constraints
from experiments.configured import data as build_data
from experiments.configured import policy as build_policy
from experiments.configured import sampling as build_sampling
from experiments.measure import coherence_forecast
from experiments.measure import feasibility_tables
from experiments.measure import forecast
from experiments.measure.reference import Measured
from experiments.run import workdir as workdirs
from qempo_jax.errors import InputError
from qempo_jax.evaluation import intervals
from qempo_jax.paths import json_numbers

MAX_PROMPTS = 32  # spread evenly over the training rows


def main(config, workdir: pathlib.Path, dry_run: bool) -> None:
  """Samples the reference, forecasts, prints two tables and writes feasibility.json."""
  build.check_one_method(config)
  build_sampling.check_training(config)
  programs = forecast.programs(config)
  samples = config.feasibility.samples_per_prompt
  group_size = min(samples, config.evaluation.samples_per_prompt)
  rounds = -(-samples // group_size)
  prompts = min(MAX_PROMPTS, len(build_data.training_rows(config)))
  if dry_run:
    print(f"Would draw {rounds * group_size} samples of each of {prompts} prompts from the reference policy.")
    policy = build_policy.policy(config)
    print(dry_runs.describe_sampling(build_sampling.sampling(config, policy), policy))
    return
  policy = build_policy.policy(config)
  reference = build.reference(config, policy)
  if reference.beyond_reach():
    reference.check(4, group_size)  # raises, with what the reference reaches, without the long wait
  workdir = workdirs.open_workdir(workdir, workdirs.of_the_run(config, workdir, ("feasibility", "evaluation")))
  started = time.monotonic()
  batch = min(prompts, config.evaluation.prompts_per_batch)
  found = reference.measure(num_prompts=prompts, batch=batch, group_size=group_size, rounds=rounds)
  reference.check_floor(found)
  results = report(config, programs, found)
  results["seconds"] = time.monotonic() - started
  if words := build_sampling.in_words(build_sampling.sampling(config, policy)):
    results["sampling"] = f"{words}; forecasts take this reference, as it is sampled, for the reference policy"
    print(f"Samples: {results['sampling']}")
  path = workdir / "feasibility.json"
  workdirs.write(path, json.dumps(json_numbers(results), indent=1, allow_nan=False) + "\n")
  feasibility_tables.show(results, Console())
  if found.unscored > 0.01:
    print(f"WARNING: {found.unscored:.1%} of responses could not be judged, and count as the least reward")
  print(f"Written to {path}")


def report(config, programs, found: Measured) -> dict:
  """Everything that is printed and written.

  Raises:
    InputError: the KL budget is below what the floor costs, as far as the samples can tell.
  """
  forecasts = [forecast.forecast(program, found) for program in programs]
  budget = build_constraints.bound(config, "kl")
  if budget is not None and forecasts[0]["status"] == "forecast" and budget < forecasts[0]["kl"]["low"]:
    kl = forecasts[0]["kl"]
    raise InputError(
      f"constraints.kl.bound={budget:g} is out of reach: at the floor aimed at, a KL of {kl['mean']:.3g} nats"
      f" [{kl['low']:.3g}, {kl['high']:.3g}] is the least; raise it, or lower the floor"
    )
  own = next((program for program in programs if program.configured), None)
  aim = build_constraints.bound(config, "quality", aim=True)
  coherence, start = coherence_forecast.settings_of(config), build_constraints.settings(config)["quality"].start
  return {
    "command": "python -m experiments.feasibility " + " ".join(sys.argv[1:]),
    "floor": build_constraints.bound(config, "quality"),
    "aim": aim,
    "max_kl": budget,
    "level": forecast.LEVEL,
    "prompts": len(found.rewards),
    "prompts_left_out": found.dropped,
    "samples_per_prompt": found.rewards.shape[1],
    "limits": {
      "effective_sample_size": forecast.MIN_EFFECTIVE_SAMPLES,
      "hidden_share": forecast.MAX_HIDDEN_SHARE,
    },
    "reference": {
      "reward": intervals.mean_interval(found.rewards)._asdict(),
      "entropy": intervals.mean_interval(found.entropies)._asdict(),
      "truncation": float(found.truncated.mean()),
      "unscored": found.unscored,
      "prompts_of_one_reward": int(np.sum(np.ptp(found.rewards, axis=1) == 0)),
    },
    "best_of": forecast.best_of(found),
    "forecasts": forecasts,
    "floors_foretold": None if aim is None or own is None else forecast.floors_foretold(own, found),
    "coherence": coherence and coherence_forecast.forecast(coherence, found, aim=aim, start=start),
  }


if __name__ == "__main__":
  cli.run(
    main,
    description="Says what floor the reference's samples reach, and which optimum they foretell, or why none.",
    example="python -m experiments.feasibility --config=configs/online_qempo_kl.py --workdir=runs/feasibility",
    of_run=("feasibility", "evaluation"),
  )
