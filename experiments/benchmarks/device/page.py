"""The page of a device's measurements: ceilings, goals, a table for each kind, and what did not run."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from experiments.benchmarks.device.schedule import DONE
from experiments.compile import chips

Record = Mapping[str, Any]
GIB = 2**30
_TINY = "Small shapes stand in for the models: the page shows that the parts run, not how fast the models would."


def ceilings(records: Sequence[Record]) -> dict[str, Any]:
  """The device's description, measured ceilings, and the maker's peaks if known, by name."""
  done = {record["case"]: record["result"] for record in of_kind(records, "ceilings")}
  device = done.get("device", {})
  found = {
    **device,
    "flops": done.get("product", {}).get("flops"),
    "bytes": done.get("copy", {}).get("bytes_per_second"),
  }
  chip = chips.by_device_kind(device.get("kind", ""))
  peaks = (
    {"peak_flops": chip.flops, "peak_bytes": chip.hbm_bandwidth} if chip else {"peak_flops": None, "peak_bytes": None}
  )
  return found | peaks


def of_kind(records: Sequence[Record], kind: str) -> list[Record]:
  """The finished measurements of a kind."""
  return [record for record in records if record["kind"] == kind and record["status"] == DONE]


def share(value: float | None, limits: Mapping[str, Any], name: str) -> float | None:
  """Share of the maker's peak, or of the measured ceiling if no peak is known."""
  limit = limits[f"peak_{name}"] or limits[name]
  return value / limit if value and limit else None


def goals(records: Sequence[Record]) -> list[dict[str, Any]]:
  """Each goal with the best measurement of whole models for it: name, goal, best (None: not measured), case, met."""
  limits = ceilings(records)
  full = [record for record in records if not record["settings"].get("tiny")]
  training, decode, grpo = (of_kind(full, kind) for kind in ("training", "decode", "grpo"))
  mfu = lambda record: share(record["result"]["flops"], limits, "flops")
  bandwidth = lambda record: share(record["result"]["bytes_per_second"], limits, "bytes")
  speed = lambda record: record["result"]["tokens_per_second"]
  samples = lambda record: record["settings"]["batch"]["rows"] * record["settings"]["batch"]["group"]
  of_model = lambda found, *names: [record for record in found if record["settings"]["model"] in names]
  rows = [
    ("MFU at 0.5B", 0.25, of_model(training, "0.5b"), mfu),
    ("MFU at 1.5B", 0.40, of_model(training, "1.5b"), mfu),
    ("MFU at 8B", 0.40, of_model(training, "8b"), mfu),
    *(
      (f"share of bandwidth, decode {name} of 128 samples or more", 0.5, of_model([r for r in decode if samples(r) >= 128], name), bandwidth)
      for name in ("0.5b", "1.5b", "8b")
    ),
    ("GRPO 7B, response tokens a second", 2500, of_model(grpo, "7b"), speed),
  ]  # fmt: skip
  found = []
  for name, goal, candidates, value in rows:
    known = [(value(record), record) for record in candidates if value(record) is not None]
    best, record = max(known, key=lambda pair: pair[0], default=(None, None))
    case = f"{record['part']}: {record['case']}" if record else ""
    found.append({"name": name, "goal": goal, "best": best, "case": case, "met": best is not None and best >= goal})
  return found


def markdown(records: Sequence[Record], *, command: str, plots: Sequence[str]) -> str:
  """The whole page."""
  limits = ceilings(records)
  lines = [
    f"# What {limits.get('kind', 'this device')} does",
    "",
    f"Made by `{command}`: random weights, JAX {limits.get('jax')}, Python {limits.get('python')}.",
    _against(limits),
    *([_TINY] if any(record["settings"].get("tiny") for record in records) else []),
    "",
  ]
  lines += _table("Ceilings", ("", "measured", "maker's peak"), _ceiling_rows(limits))
  lines += _table("Goals", ("goal", "at least", "best", "", "case"), [goal_row(goal) for goal in goals(records)])
  for kind, (title, columns) in TABLES.items():
    rows = [
      [
        f"{r['part'].removesuffix(', more')}: {r['case']}",
        *(column(r["result"], limits) for column in columns.values()),
      ]
      for r in of_kind(records, kind)
    ]
    if rows:
      lines += _table(title, ("", *columns), rows)
  compiled = [r for r in records if r["status"] == DONE and "compile_seconds" in r["result"]]
  lines += _table(
    "Compile times, nothing cached",
    ("", "compile, s", "temporary memory, GiB"),
    [
      [f"{r['part'].removesuffix(', more')}: {r['case']}", f"{r['result']['compile_seconds']:.1f}", _gib(r["result"].get("temporary_bytes"))]
      for r in compiled
    ],
  )  # fmt: skip
  lines += [line for name in plots for line in (f"![{name}]({name})", "")]
  lines += _table(
    "Not measured",
    ("", "status", "reason"),
    [[f"{r['part']}: {r['case']}", r["status"], r["reason"].replace("|", "/")] for r in records if r["status"] != DONE],
  )
  return "\n".join(lines).rstrip() + "\n"


def _against(limits) -> str:
  if limits["peak_flops"]:
    return "Shares are of the maker's dense bfloat16 peak and of its memory's bandwidth."
  return "The maker's peaks are not known here: shares are of what the device itself reached."


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  if not rows:
    return []
  lines = [f"## {title}", "", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
  return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def _ceiling_rows(limits) -> list[list[str]]:
  tera = lambda x, unit: "not measured" if x is None else f"{x / 1e12:.3g} T{unit}/s"
  rows = [
    ["bfloat16 product", tera(limits["flops"], "FLOP"), "unknown" if not limits["peak_flops"] else tera(limits["peak_flops"], "FLOP")],
    ["copy, read and written", tera(limits["bytes"], "B"), "unknown" if not limits["peak_bytes"] else tera(limits["peak_bytes"], "B")],
  ]  # fmt: skip
  return [*rows, ["memory that JAX may take", _gib(limits.get("memory_limit"), " GiB"), ""]]


def goal_row(goal: Mapping[str, Any]) -> list[str]:
  """A goal's cells: name, goal, best, met or missed, case."""
  number = lambda x: f"{x:.0%}" if goal["goal"] < 1 else f"{x:,.0f}"
  best = "not measured" if goal["best"] is None else number(goal["best"])
  verdict = "" if goal["best"] is None else "met" if goal["met"] else "missed"
  return [goal["name"], number(goal["goal"]), best, verdict, goal["case"]]


def _gib(size: float | None, unit: str = "") -> str:
  return "unknown" if size is None else f"{size / GIB:.2f}{unit}"


def _plain(name: str, form: str, factor: float = 1.0) -> Callable:
  return lambda result, limits: "unknown" if result.get(name) is None else format(result[name] * factor, form)


def _share(name: str, of: str) -> Callable:
  def cell(result, limits):
    found = share(result.get(name), limits, of)
    return "unknown" if found is None else f"{found:.1%}"

  return cell


def _memory(result, limits) -> str:
  if result.get("peak_bytes") is not None:
    return _gib(result["peak_bytes"])
  return f"{_gib(result.get('program_bytes'))} (program)"


_PEAK = {"peak memory, GiB": _memory}
# Kind -> (title, column -> cell of a result).
TABLES: dict[str, tuple[str, dict[str, Callable]]] = {
  "agreement": (
    "Sampler against scorer, log-probs in nats",
    {
      "largest difference": _plain("largest", ".2e"),
      "mean": _plain("mean", ".2e"),
      "token ratios outside [.9, 1.1]": _plain("tokens_outside", ".2%"),
      "response ratios outside": _plain("responses_outside", ".2%"),
      "largest difference of entropies": _plain("entropy_largest", ".2e"),
    },
  ),
  "attention": (
    "Attention of packed rows, errors relative to the largest number in float32",
    {
      "error": _plain("forward_error", ".1e"),
      "error of gradients": _plain("gradient_error", ".1e"),
      "forward, ms": _plain("forward_seconds", ".3g", 1e3),
      "with gradients, ms": _plain("gradient_seconds", ".3g", 1e3),
    },
  ),
  "token_stats": (
    "Log-probs and entropies of tokens, errors in nats",
    {
      "error of log-probs": _plain("log_prob_error", ".1e"),
      "of entropies": _plain("entropy_error", ".1e"),
      "forward, ms": _plain("forward_seconds", ".3g", 1e3),
      "with gradients, ms": _plain("gradient_seconds", ".3g", 1e3),
      "share of peak, forward": _share("flops", "flops"),
    },
  ),
  "decode": (
    "Sampling",
    {
      "tokens/s": _plain("tokens_per_second", ",.0f"),
      "a step, ms": _plain("step_seconds", ".3g", 1e3),
      "prefill, ms": _plain("prefill_seconds", ".3g", 1e3),
      "share of bandwidth": _share("bytes_per_second", "bytes"),
    }
    | _PEAK,
  ),
  "training": (
    "Updates",
    {
      "seconds": _plain("seconds", ".3g"),
      "tokens/s": _plain("tokens_per_second", ",.0f"),
      "MFU": _share("flops", "flops"),
    }
    | _PEAK,
  ),
  "grpo": (
    "GRPO from end to end",
    {
      "response tokens/s": _plain("tokens_per_second", ",.0f"),
      "sampling, s": _plain("sample_seconds", ".3g"),
      "host, s": _plain("host_seconds", ".3g"),
      "update, s": _plain("update_seconds", ".3g"),
    }
    | _PEAK,
  ),
}
