"""The progress display: plain lines where there is no terminal, a live panel where there is one."""

import io

import pytest
from rich.console import Console

from experiments.run import display
from qempo_jax import constraints

METRICS = {
  "loss": -0.125, "reward": 0.8123, "floor": 0.85, "entropy": 6.5, "learning_rate": 1e-5, "grad_norm": 0.5,
  "dual/quality/multiplier": 3.25, "dual/quality/value": 0.8123, "dual/quality/bound": 0.85,
  "dual/polite/multiplier": 0.5, "dual/polite/value": 0.31, "dual/polite/bound": 0.6,
  "entropy_per_token": 1.25, "kl": 2.25, "length": 4.2, "truncation": 0.03, "tokens_per_second": 210.4,
}  # fmt: skip


CONSTRAINTS = {
  "quality": constraints.reward_floor("reward", 0.8),  # met, but not what the controller aims at
  "kl": constraints.kl_budget(None),
  "polite": constraints.reward_floor("polite", 0.6),
}


@pytest.fixture
def clock(monkeypatch):
  """A clock that the test moves."""
  now = [0.0]
  monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
  return now


def _plain():
  output = io.StringIO()
  return output, Console(file=output, width=60)


def test_plain_lines_hold_every_figure_on_one_line_a_step(clock):
  output, console = _plain()
  with display.Display(40, title="qempo_kl", console=console, constraints=CONSTRAINTS) as shown:
    shown.step(1, METRICS)
    clock[0] = 3.0
    shown.step(2, METRICS)
  lines = output.getvalue().splitlines()
  figures = (
    "loss -0.125  reward 0.812  quality 0.812 (aim 0.85, floor 0.8) multiplier 3.25  polite 0.31 (floor 0.6) multiplier 0.5"
    "  entropy 6.50 nats  1.25 nats/token  KL 2.25  length 4.2  rate 1e-05  gradient 0.5  truncated 3%  210 tokens/s"
  )
  assert lines == ["qempo_kl: 40 steps", f"step 1/40  {figures}", f"step 2/40  {figures}  1:54 left"]


def test_time_left_counts_from_the_first_step_shown_also_after_a_resume(clock):
  output, console = _plain()
  with display.Display(100, console=console) as shown:
    clock[0] = 500.0  # compilation
    shown.step(61, {})
    clock[0] = 600.0
    shown.step(81, {})
  assert output.getvalue().splitlines() == ["step 61/100", "step 81/100  1:35 left"]


def test_absent_figures_are_left_out():
  assert display.figures({"reward": 0.5, "kl": None}) == [("reward 0.500", "")]


def test_truncation_above_the_limit_is_loud():
  assert display.figures({"truncation": 0.2}) == [("truncated 20%", "")]
  assert display.figures({"truncation": 0.31}) == [("TRUNCATED 31% (!)", "bold red")]


def test_a_missed_bound_is_coloured():
  styles = dict(display.figures(METRICS, CONSTRAINTS))
  assert styles["polite 0.31 (floor 0.6) multiplier 0.5"] == "yellow"
  assert styles["quality 0.812 (aim 0.85, floor 0.8) multiplier 3.25"] == ""


def test_bounds_that_training_did_not_meet_are_said_at_its_end():
  bounds = {"quality": constraints.reward_floor("reward", 0.7), "kl": constraints.kl_budget(2.0)}
  rows = [{"dual/quality/value": value, "dual/kl/value": 1.0} for value in (0.9, 0.9, 0.2, 0.2, 0.3, 0.3, 0.25)]
  rows.append({"dual/quality/value": None, "loss": 1.0})
  assert display.missed(rows, bounds) == ["quality 0.25 (floor 0.7; mean of the last 5 measurements)"]
  assert display.missed(rows[:2], bounds) == [] == display.missed([], bounds)


def test_notes_are_shown_as_they_are():
  output, console = _plain()
  with display.Display(2, console=console) as shown:
    shown.note("saved [bold]checkpoints/1[/bold]")
  assert output.getvalue() == "saved [bold]checkpoints/1[/bold]\n"


def test_a_terminal_gets_a_live_panel_that_is_closed_even_on_an_error():
  output = io.StringIO()
  console = Console(file=output, width=80, force_terminal=True)
  with pytest.raises(KeyboardInterrupt), display.Display(4, title="qempo", console=console) as shown:
    shown.step(1, METRICS)
    shown.note("a note")
    shown.step(2, METRICS)
    raise KeyboardInterrupt
  text = output.getvalue()
  assert "step 2/4" in text and "a note" in text and "\u2501" in text
  assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is shown again


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (65.4, "1:05"), (3661, "1:01:01"), (-3, "0:00")])
def test_clock(seconds, text):
  assert display.clock(seconds) == text
