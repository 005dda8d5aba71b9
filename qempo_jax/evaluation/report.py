"""Writes the report of a run (results.json, index.html, plots as PNG files), and the table for the terminal."""

from collections.abc import Mapping
from collections.abc import Sequence
import json
import os
import pathlib

from rich import box
from rich.table import Table

from qempo_jax.evaluation import alarms
from qempo_jax.evaluation import diversity_plots
from qempo_jax.evaluation import page
from qempo_jax.evaluation import pages
from qempo_jax.evaluation import plots
from qempo_jax.evaluation.rows import METHOD_LABELS
from qempo_jax.evaluation.rows import SPLIT_LABELS
from qempo_jax.paths import write_atomically


def write_report(
  directory: str | os.PathLike, results: Mapping, metrics: Mapping[str, Sequence[Mapping]], rows: Sequence[Mapping]
) -> pathlib.Path:
  """Writes results.json, index.html (self-contained) and the plots as PNG files into `directory`.

  Each file is written atomically, under another name first.

  Args:
    directory: the report's folder, created if absent.
    results: from `summarise`.
    metrics: logged steps of every method: `step` and any of reward, floor, dual/quality/multiplier, dual/kl/multiplier,
      entropy, truncation.
    rows: evaluation rows of the results.

  Returns:
    The path of index.html.
  """
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  results = dict(results) | {"warnings": [*results["warnings"], *alarms.training_warnings(metrics)]}
  all_plots = _plots(results, metrics)
  write_atomically(directory / "results.json", json.dumps(results, indent=2, allow_nan=False, default=str))
  for name, (png, _) in all_plots.items():
    write_atomically(directory / f"{name}.png", png)
  write_atomically(directory / "index.html", page.render(results, all_plots, rows))
  return directory / "index.html"


def terminal_table(results: Mapping) -> Table:
  """Main figures of every policy and split with the floor's verdict; ± is half an interval's width."""
  table = Table(
    box=box.SIMPLE_HEAD,
    title=_floors_in_words(results),
    title_justify="left",
    collapse_padding=True,
    pad_edge=False,
  )
  table.add_column("policy", overflow="fold")  # The only column that gives way in a narrow terminal.
  for label in ("reward", "answers", "nats", "KL", "tokens", "cut"):
    table.add_column(label, justify="right", no_wrap=True)
  table.add_column("floor", no_wrap=True)
  for split in results["comparisons"]:
    table.add_section()
    table.add_row(f"[i]{SPLIT_LABELS.get(split, split)}[/i]")
    for method, entry in results["methods"].items():
      if split in entry["splits"]:
        figures = entry["splits"][split]
        table.add_row(
          METHOD_LABELS.get(method, method),
          f"{figures['reward']['mean']:.3f} {_plus_minus(figures['reward'], 2)}",
          f"{figures['effective_answers']['mean']:.1f} {_plus_minus(figures['effective_answers'], 1)}",
          pages.number(figures["entropy"], 1),
          pages.number(figures["kl"], 1),
          pages.number(figures["length"], 1),
          "–" if (cut := figures["truncation"]["mean"]) is None else f"{cut:.0%}",
          figures["certificates"][0]["verdict"],
        )
  return table


def _floors_in_words(results) -> str:
  """A floor relative to the reference is another number on each split."""
  if results["floor_kind"] == "absolute":
    return f"Reward floor {results['floor']:.3g}"
  floors = (f"{floor:.3g} on {SPLIT_LABELS.get(split, split)}" for split, floor in results["floors"].items())
  return f"Reward floor {', '.join(floors)} ({results['floor_kind']} {results['floor']:g})"


def _plus_minus(interval, digits):
  """Half the interval's width."""
  return "" if interval["low"] is None else f"±{(interval['high'] - interval['low']) / 2:.{digits}f}"


_TRAINING_CAPTIONS = {
  "reward": "Reward over training steps, with the floor",
  "multipliers": "Multipliers over training steps",
  "slack": "Slack of the constraints over training steps: below 0 a constraint is broken",
  "training_entropy": "Entropy over training steps",
}


def _plots(results, metrics):
  """PNG bytes and caption of every plot, in the page's order."""
  images = {
    "quality_answers": (
      plots.quality_plot(results, "effective_answers", "Effective number of acceptable answers"),
      "Quality against diversity: reward and effective number of acceptable answers",
    ),
    "quality_entropy": (
      plots.quality_plot(results, "entropy", "Sequence entropy (nats)"),
      "Quality against entropy",
    ),
  }
  split_figures = [figures for entry in results["methods"].values() for figures in entry["splits"].values()]
  if not any(figures["entropy"]["mean"] is not None for figures in split_figures):
    del images["quality_entropy"]  # Rows of texts without a model's entropies.
  floor = results["floor"] if results["floor_kind"] == "absolute" else results["floors"].get("train")
  for name, png in plots.training_plots(metrics, floor).items():
    images[name] = (png, _TRAINING_CAPTIONS[name])
  for split, answers in results["answers"].items():
    if answers:
      caption = f"Answers to one prompt ({SPLIT_LABELS.get(split, split)}): “{answers['prompt']}”"
      images[f"answers_{split}"] = (plots.answers_plot(answers), caption)
  # The tallest last, so that two columns fill evenly.
  split = page.main_split(results)
  caption = f"Diversity on {SPLIT_LABELS.get(split, split)}: filled above the floor, hollow over all outputs"
  images["diversity"] = (diversity_plots.draw(results, split), caption)
  return images
