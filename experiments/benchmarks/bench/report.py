"""The page `experiments/benchmarks/RESULTS.md`, computed from raw results."""

from collections.abc import Mapping

from experiments.benchmarks.bench import arithmetic

HEAD = """# Benchmarks, side by side

Made by `make bench` from `docs/results/bench.json`; do not edit. Both sides of a row ran in one call, step by step in
turn, on the same token ids and the same weights of SmolLM2-135M-Instruct, after steps to warm up. Every side is a
separate process. Before times count, both must report the same loss: for training at the first step and after one
update, for sampling that of given responses. Times are medians with their range in brackets. The ratio is the other
side's time over ours, and its range is that of neighbouring steps. Memory is the process's peak resident size during
these steps.

The floor is the time of the bare matrix products at the model's shapes, measured in the same call before and after each
match; the best one counts. It has two operations per weight and token forward and six with a gradient; attention, norms,
the optimizer and recomputation are left out. The ratio at the floor is the other side's time over the floor: the ratio
of our step if it took only the time of its products.

![time of the peers over ours](../../docs/figures/bench.png)
"""


def page(results: Mapping) -> str:
  """Returns the whole page."""
  parts = [HEAD]
  for name, entry in results.items():
    rehearsal = " (rehearsal with a tiny model)" if entry["tiny"] else ""
    parts.append(f"## {name}{rehearsal}\n\n{entry['title'][0].upper()}{entry['title'][1:]}.\n")
    parts.append(_scaling(entry["axes"]) if "axes" in entry else _matches(entry))
    versions = ", ".join(f"{package} {version}" for package, version in entry["versions"].items())
    tunables = f" with `GLIBC_TUNABLES={entry['tunables']}` for all sides" if entry.get("tunables") else ""
    parts.append(
      f"`{entry['command']}`{tunables}, {entry['date']}; {entry['machine']}; load average {entry['load_before']:.1f} before and"
      f" {entry['load_after']:.1f} after; {versions}.\n"
    )
  return "\n".join(parts)


def seconds(match: Mapping, side: str) -> list[float]:
  """Seconds of the measured steps of "ours" or "other"."""
  return [step["seconds"] for step in match["sides"][match[side]]["steps"]]


def peak(match: Mapping, side: str) -> int:
  """Peak memory of the measured steps of "ours" or "other", bytes."""
  return max(step["peak_bytes"] for step in match["sides"][match[side]]["steps"])


def floor(entry: Mapping, match: Mapping) -> float | None:
  """Seconds of our step's bare products."""
  if "floor" not in entry:
    return None
  rates = entry["floor"]["bfloat16" if "bfloat16" in match["ours"] else "float32"]
  operations = arithmetic.operations(entry["kind"], entry["shape"], entry["model"])
  return operations["forward"] / rates["forward"] + operations["trained"] / rates["trained"]


def _matches(entry) -> str:
  heads = ("ours", "other", "ours, s", "other, s", "ratio", "goal", "memory", "share of floor", "ratio at the floor")
  lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
  for match in entry["matches"]:
    ours, other = seconds(match, "ours"), seconds(match, "other")
    memory = f"{peak(match, 'ours') / 1e9:.2f} / {peak(match, 'other') / 1e9:.2f} GB"
    share = peak(match, "ours") / peak(match, "other")
    memory += f", {share:.0%}" + (f" (goal {match['memory_goal']:.0%})" if match["memory_goal"] else "")
    shared = reachable = ""
    if least := floor(entry, match):
      shared = f"{least / arithmetic.summary(ours).median:.0%}" + (
        f" (goal {entry['floor_goal']:.0%})" if entry["floor_goal"] else ""
      )
      reachable = f"{arithmetic.summary(other).median / least:.2f}"
    goal = f">= {match['goal']:.2f}" if match["goal"] else ""
    ratio = _range(arithmetic.ratio(ours, other), 2)
    cells = (
      match["ours"],
      match["other"],
      *(_range(arithmetic.summary(x), 2) for x in (ours, other)),
      ratio,
      goal,
      memory,
      shared,
      reachable,
    )
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join([*lines, *_notes(entry)]) + "\n"


def _notes(entry) -> list[str]:
  """Notes below the table: tokens per second of samplers, rates of the floor, and the checked values."""
  lines = [""]
  for match in entry["matches"]:
    sides, facts = match["sides"], []
    for name, side in sides.items():
      step = side["steps"][-1]
      if entry["kind"] == "decode":
        typical = arithmetic.summary([step["seconds"] for step in side["steps"]]).median
        facts.append(f"{name} {step['tokens'] / typical:,.0f} tokens/s")
      if "sampling_seconds" in step:
        facts.append(f"{name} sampled for {step['sampling_seconds']:.2f} s")
      if "temporary_bytes" in step:
        facts.append(f"{name} {step['temporary_bytes'] / 2**20:,.0f} MiB beside arguments and results")
      facts.append(
        f"{name} peaked at {max(step['peak_bytes'] for step in side['warm_up']) / 1e9:.2f} GB when it warmed up"
      )
    checks = " and ".join(_shown(side["warm_up"][0]["check"]) for side in sides.values())
    lines.append(f"- {' and '.join(sides)}: checked values {checks}" + "".join(f"; {fact}" for fact in facts))
  for dtype, rates in entry.get("floor", {}).items():
    lines.append(
      f"- products in {dtype}: {rates['forward'] / 1e9:,.0f} GFLOP/s forward, {rates['trained'] / 1e9:,.0f} with gradients"
    )
  return lines


def _scaling(axes) -> str:
  lines = ["| size | from, to | time: slope | R² | temporary memory | R² |", "|---|---|---|---|---|---|"]
  for axis, found in axes.items():
    x = found["sizes"]
    time = arithmetic.line(x, [arithmetic.summary(s).low for s in found["seconds_of"]])
    mib = [size / 2**20 for size in found["temporary_bytes"]]
    memory = arithmetic.line(x, mib)
    cells = (
      axis,
      f"{x[0]:,}, {x[-1]:,}",
      f"{time.slope * 1e3:.3g} ms each, {time.intercept:.2f} s at 0",
      f"{time.r_squared:.4f}",
      f"{memory.slope * 1024:.3g} KiB each; {mib[0]:,.0f} to {mib[-1]:,.0f} MiB",
      f"{memory.r_squared:.4f}",
    )
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines) + "\n\nTimes are the least of each point's repetitions.\n"


def _range(found: arithmetic.Summary, digits: int) -> str:
  return f"{found.median:.{digits}f} ({found.low:.{digits}f}-{found.high:.{digits}f})"


def _shown(check) -> str:
  return ", ".join(f"{value:.6g}" for value in check) if isinstance(check, list) else f"{check:.6g}"
