"""Drawings of the four traps that `traps` measures."""

from collections.abc import Mapping
import pathlib

import numpy as np

from experiments.studies.figures import BLUE
from experiments.studies.figures import GREEN
from experiments.studies.figures import GREY
from experiments.studies.figures import ORANGE
from experiments.studies.figures import label
from experiments.studies.figures import panels
from experiments.studies.figures import save


def draw_all(results: Mapping[str, Mapping], out: pathlib.Path) -> None:
  """Writes trap_1.png ... trap_4.png."""
  for number, draw in enumerate((_window, _order, _strings, _offline), 1):
    save(draw(results[str(number)]), out / f"trap_{number}.png")


def _window(found):
  figure, (top, bottom) = panels(2)
  low, high = found["min_kl"], found["qempo_kl"]
  width = high - low
  left, right = low - 0.35 * width, high + 0.35 * width
  top.plot(found["budget"], found["entropy"], color=GREEN, linewidth=2.5)
  top.plot([high, right], [found["qempo_entropy"]] * 2, color=BLUE, linewidth=2.5)
  top.plot(low, found["rlhf_entropy"], "^", color=ORANGE, markersize=9)
  top.plot(high, found["qempo_entropy"], "D", color=BLUE, markersize=8)
  top.axvspan(left, low, color="#E6E6E6", linewidth=0)
  top.set_xlim(left, right)
  top.margins(y=0.2)
  middle = (found["rlhf_entropy"] + found["qempo_entropy"]) / 2
  label(top, "no policy\nreaches R", ((left + low) / 2, middle), GREY, to=(0, 0), ha="center")
  label(top, "RLHF", (low, found["rlhf_entropy"]), ORANGE, to=(9, -2), fontweight="bold")
  label(top, "QEMPO", (high, found["qempo_entropy"]), BLUE, to=(0, 12), ha="center", fontweight="bold")
  half = len(found["budget"]) // 2
  label(top, "QEMPO-KL", (found["budget"][half], found["entropy"][half]), GREEN, to=(10, -10),
        fontweight="bold")  # fmt: skip
  label(top, "budget\nunused", ((high + right) / 2, middle), GREY, to=(0, 0), ha="center")
  top.set_title("K matters only between two ends", loc="left")
  top.set_xlabel("KL budget K (nats)")
  top.set_ylabel("entropy (nats)")
  slack = np.array(found["slack"])
  for name, colour, text, at, offset in (
    ("quality_multiplier", BLUE, "λ, of the floor", 4, (6, 10)),
    ("kl_multiplier", ORANGE, "μ, of the budget", 1, (-22, -36)),
  ):
    values = np.array(found[name])
    bottom.loglog(slack, values, "o-", color=colour, linewidth=2, markersize=4)
    label(bottom, text, (slack[at], values[at]), colour, to=offset, fontweight="bold")
  guide = found["kl_multiplier"][0] * (slack / slack[0]) ** -0.5 / 60
  bottom.loglog(slack, guide, "--", color=GREY, linewidth=1)
  label(bottom, "slope −1/2", (slack[7], guide[7]), GREY, to=(6, 8))
  bottom.set_title("Towards RLHF's KL the multipliers diverge", loc="left")
  bottom.set_xlabel("K above RLHF's KL (nats)")
  bottom.set_ylabel("multiplier")
  return figure


def _order(found):
  figure, (top, bottom) = panels(2)
  colours = {"qempo": BLUE, "rlhf": ORANGE}
  names = {"qempo": "QEMPO", "rlhf": "RLHF"}
  example = found["example"]
  for name, colour in colours.items():
    top.semilogx(found["temperature"], found["entropy_at_temperature"][name], color=colour, linewidth=2.5)
    value = example["entropy"][name]
    top.plot(example["temperature"], value, "o", color=colour, markersize=7)
    below = name == "qempo"
    text = f"{names[name]} {value:.2f},\nE[r] = {example['reward'][name]:.2f}"
    label(top, text, (example["temperature"], value), colour, to=(10, -14) if below else (0, 22),
          ha="left" if below else "center", fontweight="bold")  # fmt: skip
  top.set_ylim(0, 1.42)
  top.set_title("Same temperature: either can be ahead", loc="left")
  top.set_xlabel("temperature (reward per nat)")
  top.set_ylabel("entropy (nats)")
  top.set_xticks([0.1, 0.2, 0.5, 1, 2], ["0.1", "0.2", "0.5", "1", "2"])
  top.minorticks_off()
  for name, colour in colours.items():  # QEMPO is wide and drawn first, to be visible where the two almost meet.
    bottom.plot(found["floor"], found["entropy_at_floor"][name], color=colour,
                linewidth=6 if name == "qempo" else 2)  # fmt: skip
  near = int(np.argmin(np.abs(np.array(found["floor"]) - 0.3)))
  for name, offset in (("qempo", (0, 12)), ("rlhf", (0, -14))):
    label(bottom, names[name], (found["floor"][near], found["entropy_at_floor"][name][near]),
          colours[name], to=offset, fontweight="bold")  # fmt: skip
  bottom.margins(y=0.15)
  bottom.set_title("Same quality: QEMPO is never behind", loc="left")
  bottom.set_xlabel("floor R on the expected reward")
  bottom.set_ylabel("entropy (nats)")
  return figure


def _strings(found):
  figure, (top, bottom) = panels(2)
  rows = found["by_number"]
  number = [row["bad"] for row in rows]
  total, inside = ([row[key] for row in rows] for key in ("entropy", "entropy_inside"))
  top.semilogx(number, total, "o-", color=ORANGE, linewidth=2.5, markersize=5)
  top.semilogx(number, inside, "s-", color=BLUE, linewidth=2.5, markersize=5)
  label(top, "all samples", (number[4], total[4]), ORANGE, to=(-6, 10), ha="right", fontweight="bold")
  label(top, f"acceptable samples: log {found['good']}", (number[3], inside[3]), BLUE, to=(0, -12),
        ha="left", fontweight="bold")  # fmt: skip
  top.set_ylim(min(inside) - 0.5, max(total) + 0.3)
  top.set_title(f"Floor {found['min_reward']:g}: the rest goes to bad strings", loc="left")
  top.set_xlabel("number of bad strings")
  top.set_ylabel("entropy of QEMPO (nats)")
  for name, text, marker, colour in (
    ("qempo", "QEMPO", "o", BLUE),
    ("qempo_kl", "QEMPO-KL", "s", GREEN),
  ):
    for floor, style in ((0.9, "-"), (0.6, "--")):
      line = [r for r in found["by_length"] if r["method"] == name and r["min_reward"] == floor]
      caps, tokens = ([row[key] for row in line] for key in ("cap", "tokens"))
      bottom.plot(caps, tokens, marker + style, color=colour, linewidth=2, markersize=4)
      label(bottom, f"{text}, R = {floor:g}", (caps[-1], tokens[-1]), colour, fontweight="bold")
  bottom.set_xlim(2.7, 18.2)
  bottom.set_xticks([3, 6, 9, 12])
  bottom.set_title("… and to the longest the cap allows", loc="left")
  bottom.set_xlabel("length cap (tokens)")
  bottom.set_ylabel("mean length (tokens)")
  return figure


def _offline(found):
  figure, axes = panels(3, height=2.9)
  colours = {0.5: ORANGE, 1.0: GREEN, 2.0: BLUE}
  names = {0.5: "hesitant", 1.0: "as assumed", 2.0: "decisive"}
  floor = found["min_reward"]
  for c, colour in colours.items():
    curve = found["reward_by_decisiveness"][str(c)]
    axes[0].plot(found["multiplier"], curve, "o-", color=colour, linewidth=2, markersize=4)
    label(axes[0], names[c], (found["multiplier"][-1], curve[-1]), colour, fontweight="bold")
  axes[0].set_xlim(0, max(found["multiplier"]) * 1.4)
  axes[0].set_xticks(range(7))
  axes[0].set_title("Same loss and weights, three kinds of annotators", loc="left")
  axes[0].set_xlabel("quality multiplier λ in the pair loss")
  for axis, measured, title in (
    (axes[1], False, "λ fixed at its value for the middle kind"),
    (axes[2], True, "λ moved by measured E[r]"),
  ):
    for run in found["runs"].values():
      if run["measured"] == measured:
        steps = np.arange(len(run["reward"])) * found["every"]
        colour = colours[run["decisiveness"]]
        axis.plot(steps, run["reward"], color=colour, linewidth=2)
        if not measured:
          text = names[run["decisiveness"]]
          above = (6, 9 if text == "as assumed" else 0)
          label(axis, text, (steps[-1], run["final_reward"]), colour, to=above, fontweight="bold")
    axis.set_xlim(0, 1.4 * steps[-1])
    axis.set_xticks(range(0, int(steps[-1]) + 2 * found["every"], 1000))
    axis.set_title(title, loc="left")
    axis.set_xlabel("offline steps")
  for axis in axes:
    axis.axhline(floor, color="#222222", linestyle="--", linewidth=1)
    label(axis, "floor", (axis.get_xlim()[1], floor), "#222222", to=(0, -9), ha="right", fontsize=10)
    axis.set_ylabel("E[r]")
  return figure
