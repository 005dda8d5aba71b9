"""Pure arithmetic of the benchmark: summaries of times, operations of a model's products, least-squares lines."""

from collections.abc import Mapping
from collections.abc import Sequence
import statistics
from typing import NamedTuple


class Summary(NamedTuple):
  """Median and range of measurements, in their unit."""

  median: float
  low: float
  high: float


class Line(NamedTuple):
  """A least-squares line y = intercept + slope x, and the share of y's variance that it explains."""

  slope: float
  intercept: float
  r_squared: float


def summary(values: Sequence[float]) -> Summary:
  """Median, smallest and largest value."""
  return Summary(statistics.median(values), min(values), max(values))


def ratio(ours: Sequence[float], other: Sequence[float]) -> Summary:
  """The other side's time over ours: ratio of medians, and range of the ratios of neighbouring steps."""
  pairs = [theirs / own for own, theirs in zip(ours, other, strict=True)]
  return Summary(statistics.median(other) / statistics.median(ours), min(pairs), max(pairs))


def line(x: Sequence[float], y: Sequence[float]) -> Line:
  """The least-squares line through points; r_squared is 1 if y does not vary."""
  mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
  spread = sum((a - mean_x) ** 2 for a in x)
  slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
  intercept = mean_y - slope * mean_x
  total = sum((b - mean_y) ** 2 for b in y)
  rest = sum((b - intercept - slope * a) ** 2 for a, b in zip(x, y))
  return Line(slope, intercept, 1 - rest / total if total else 1.0)


def weights(config: Mapping) -> tuple[int, int]:
  """Number of weights of the blocks' matrices and of the head, from the entries of a Llama's config.json."""
  d, f, k = config["hidden_size"], config["intermediate_size"], config["head_dim"]
  heads = 2 * config["num_attention_heads"] + 2 * config["num_key_value_heads"]
  return config["num_hidden_layers"] * d * (heads * k + 3 * f), config["vocab_size"] * d


def tokens(kind: str, shape: Mapping) -> dict[str, int]:
  """Tokens per step in our side's products: fed to the blocks, and scored by the head.

  Returns:
    {"decoded", "prefilled", "trained_fed", "trained_scored", "reference_fed", "reference_scored"}. A prompt counts once
    per group; a response's last token is never fed.
  """
  response = shape["response"]
  prompts, group = (shape["pairs"], 2) if kind == "offline" else (shape["prompts"], shape["group"])
  scored = prompts * group * response
  fed = prompts * shape["prompt"] + prompts * group * (response - 1)
  sampled = kind != "offline"
  trained = kind != "decode"
  return {
    "decoded": scored if sampled else 0,
    "prefilled": prompts * shape["prompt"] if sampled else 0,
    "trained_fed": fed if trained else 0,
    "trained_scored": scored if trained else 0,
    "reference_fed": fed if trained else 0,
    "reference_scored": scored if trained else 0,
  }


def operations(kind: str, shape: Mapping, config: Mapping) -> dict[str, float]:
  """Floating-point operations per step of the products with weights: {"forward", "trained"}.

  Two per weight and token forward, six with a gradient. Attention, norms and recomputation are left out.
  """
  blocks, head = weights(config)
  t = tokens(kind, shape)
  once = 2 * blocks * (t["decoded"] + t["prefilled"] + t["reference_fed"])
  once += 2 * head * (t["decoded"] + t["reference_scored"])
  return {"forward": once, "trained": 6 * (blocks * t["trained_fed"] + head * t["trained_scored"])}


def close(a, b, tolerance: float) -> bool:
  """True if two numbers, or lists of them, differ by at most `tolerance` of the larger magnitude, element by element."""
  pairs = zip(a, b, strict=True) if isinstance(a, list) else [(a, b)]
  return all(abs(x - y) <= tolerance * max(abs(x), abs(y), 1e-30) for x, y in pairs)
