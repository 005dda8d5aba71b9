"""The display of a run: a live panel in a terminal, one plain line a step anywhere else."""

from collections.abc import Mapping
from collections.abc import Sequence
import time
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from qempo_jax.constraints import Constraint

TRUNCATION_LIMIT = 0.2


class Display:
  """Shows each step's figures; use as a context manager.

  with Display(total_steps, title="qempo_kl") as display:
    display.step(step, metrics)  # step counts from 1; metrics as logged, absent keys are left out
    display.note("saved checkpoints/40")
  """

  def __init__(
    self,
    total_steps: int,
    title: str = "",
    console: Console | None = None,
    constraints: Mapping[str, Constraint] | None = None,
  ):
    self._total, self._constraints = total_steps, constraints or {}
    self._title = title
    self._console = console or Console()
    self._live = Live(console=self._console, refresh_per_second=4) if self._console.is_terminal else None
    self._first = self._last = None  # (step, time)

  def __enter__(self) -> Self:
    if self._live:
      self._live.start()
    elif self._title:
      self._print(Text(f"{self._title}: {self._total} steps"))
    return self

  def __exit__(self, *exception) -> None:
    if self._live:
      self._live.stop()

  def step(self, step: int, metrics: Mapping[str, float]) -> None:
    """Shows one finished step."""
    self._last = (step, time.monotonic())
    self._first = self._first or self._last
    parts = figures(metrics, self._constraints)
    left = self._seconds_left()
    if left is not None:
      parts.append((f"{clock(left)} left", ""))
    if self._live:
      self._live.update(self._panel(step, parts))
    else:
      line = Text.assemble(f"step {step}/{self._total}")
      for part in parts:
        line.append("  ").append(*part)
      self._print(line)

  def note(self, line: str) -> None:
    """Shows a line that stays, above the live panel."""
    self._print(Text(line))

  def _print(self, text):
    self._console.print(text, soft_wrap=True)
    if not self._live:
      self._console.file.flush()

  def _panel(self, step, parts):
    head = Text.assemble((self._title, "bold"), "  " if self._title else "", f"step {step}/{self._total}")
    body = Text()
    for index, part in enumerate(parts):
      body.append("  " if index else "").append(part[0].replace(" ", "\u00a0"), part[1])
    panel = Table.grid()
    for row in (head, ProgressBar(total=self._total, completed=step, width=40), body):
      panel.add_row(row)
    return panel

  def _seconds_left(self):
    """Seconds left, by the pace since the first step shown, which leaves compilation out; unknown until the second."""
    (first, start), (last, now) = self._first, self._last
    if last <= first:
      return None
    return (self._total - last) * (now - start) / (last - first)


def missed(rows: Sequence[Mapping[str, float]], constraints: Mapping[str, Constraint]) -> list[str]:
  """The bounds that training did not meet, by the mean over the last tenth of the steps, at least 5.

  Args:
    rows: metrics of the steps.
    constraints: of the run, without margins.
  """
  found = []
  for name, constraint in constraints.items():
    values = [row[f"dual/{name}/value"] for row in rows if row.get(f"dual/{name}/value") is not None]
    values = values[-max(5, len(values) // 10) :]
    mean = sum(values) / max(1, len(values))
    if values and constraint.bound is not None and constraint.sense * (mean - constraint.bound) < 0:
      kind = "floor" if constraint.sense > 0 else "budget"
      found.append(f"{name} {mean:.3g} ({kind} {constraint.bound:.3g}; mean of the last {len(values)} measurements)")
  return found


def figures(metrics: Mapping[str, float], constraints: Mapping[str, Constraint] | None = None) -> list[tuple[str, str]]:
  """The figures to show, each a text with a rich style; keys that are absent or None give nothing.

  Args:
    metrics: of one step.
    constraints: of the run, without the margins that the controllers aim inside.
  """
  shown = []

  def add(key, template, style=""):
    if metrics.get(key) is not None:
      shown.append((template.format(metrics[key]), style))

  add("loss", "loss {:.3g}")
  add("reward", "reward {:.3f}")
  for name, constraint in (constraints or {}).items():
    if constraint.bound is not None and metrics.get(f"dual/{name}/value") is not None:
      value, aim, price = (metrics[f"dual/{name}/{part}"] for part in ("value", "bound", "multiplier"))
      kind = "floor" if constraint.sense > 0 else "budget"
      aimed = f"aim {aim:.3g}, " if abs(aim - constraint.bound) > 1e-6 * abs(aim) else ""
      missed = constraint.sense * (value - constraint.bound) < 0
      text = f"{name} {value:.3g} ({aimed}{kind} {constraint.bound:.3g}) multiplier {price:.3g}"
      shown.append((text, "yellow" if missed else ""))
  add("entropy", "entropy {:.2f} nats")
  add("entropy_per_token", "{:.2f} nats/token")
  add("kl", "KL {:.2f}")
  add("length", "length {:.1f}")
  add("learning_rate", "rate {:.2g}")
  add("grad_norm", "gradient {:.2g}")
  add("margin", "margin {:.2f}")
  add("accuracy", "accuracy {:.2f}")
  loud = (metrics.get("truncation") or 0.0) > TRUNCATION_LIMIT
  add("truncation", "TRUNCATED {:.0%} (!)" if loud else "truncated {:.0%}", "bold red" if loud else "")
  if metrics.get("compilations"):
    add("compilations", "{:.0f} compiled")
  for name in [name for name in metrics if name.startswith("heldout/")]:
    add(name, name.removeprefix("heldout/").replace("/", " ") + " {:.3g}")
  add("padding", "padding {:.0%}")
  add("tokens_per_second", "{:.0f} tokens/s")
  return shown


def clock(seconds: float) -> str:
  """Seconds as m:ss or h:mm:ss."""
  minutes, seconds = divmod(max(0, round(seconds)), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
