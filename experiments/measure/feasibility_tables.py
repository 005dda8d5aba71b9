"""The tables that the feasibility verb prints."""

from rich.console import Console
from rich.table import Table

from experiments.measure import coherence_forecast


def show(results: dict, console: Console) -> None:
  """Prints the results."""
  reference, last = results["reference"], results["best_of"][-1]
  console.print(
    f"Reference: {results['samples_per_prompt']} samples of each of {results['prompts']} prompts; reward"
    f" {_text(reference['reward'])}, entropy {_text(reference['entropy'])} nats, truncated"
    f" {reference['truncation']:.0%}; {reference['prompts_of_one_reward']} prompts show one reward only",
    soft_wrap=True,
    highlight=False,
  )
  table = Table(title="Reachable reward: expected best of k samples", title_justify="left")
  for name in ("k", "reward", "KL at most, nats"):
    table.add_column(name, justify="right")
  for row in results["best_of"]:
    table.add_row(str(row["size"]), _text(row["reward"]), f"{row['kl_at_most']:.2f}")
  console.print(table)

  aim = results["aim"]
  title = "Optimum at the configured multipliers" if aim is None else f"Optima at the floor aimed at, {aim:g}"
  table = Table(title=f"{title} (95 % intervals over prompts)", title_justify="left")
  for name in ("program", "lambda", "mu", "KL, nats", "entropy, nats", "effective\nsamples", "hidden\nshare"):
    table.add_column(name, justify="left" if name == "program" else "right", no_wrap=name == "program")
  for row in results["forecasts"]:
    table.add_row(*_cells(row))
  console.print(table)
  for row in results["forecasts"]:
    if row["reason"]:
      console.print(f"No forecast of {row['program']}: {row['reason']}.", soft_wrap=True, highlight=False, markup=False)
  if results["coherence"]:
    console.print(coherence_forecast.line(results["coherence"], aim), soft_wrap=True, highlight=False, markup=False)
  elif aim is not None:
    floors, own = results["floors_foretold"], next(row for row in results["forecasts"] if row["configured"])
    reach = f"at floors from {floors[0]:.3g} to {floors[1]:.3g}" if floors else "at no floor"
    console.print(
      f"These samples foretell {own['program']} {reach}; the best of {last['size']} reaches {last['reward']['mean']:.3g}.",
      soft_wrap=True,
      highlight=False,
    )


def _cells(row):
  """One row of the table of optima; where there is no forecast there is no number."""
  name = f"{row['program']}\n(this config)" if row["configured"] else row["program"]
  figures = ["no forecast", *["-"] * 3]
  if row["status"] == "forecast":
    names = ("quality_multiplier", "kl_multiplier", "kl", "entropy")
    figures = [_text(row[figure]).replace(" ", "\n", 1) for figure in names]
  if "hidden_share" not in row:
    return [name, *figures, "-", "-"]
  return [name, *figures, f"{row['effective_sample_size']['harmonic_mean']:.1f}", f"{row['hidden_share']:.0%}"]


def _text(interval):
  """An estimate with its interval."""
  return f"{interval['mean']:.3g} [{interval['low']:.3g}, {interval['high']:.3g}]"
