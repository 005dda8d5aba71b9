"""The benchmark's cases: shapes, sides and goals."""

import dataclasses

from qempo_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Side:
  """One implementation of a case's work, in its own process.

  Attributes:
    name: name in tables.
    environment: "ours", or a key of `environments.PEERS`.
    module: module of `sides`.
    options: settings in addition to the case's shape: dtype, the peer's settings.
  """

  name: str
  environment: str
  module: str
  options: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Match:
  """Two sides that step in turn; the ratio is the second's time over the first's.

  Attributes:
    ours: the side under test.
    other: the side it is compared with.
    goal: smallest acceptable ratio of times; None for none.
    memory_goal: largest acceptable share of the other's peak memory; None for none.
    rounds: measured steps of each side; None for the command's number.
    warm_ups: steps before them; Tunix compiles its training step again at the second.
    tolerance: largest relative difference of the checked values.
  """

  ours: Side
  other: Side
  goal: float | None = None
  memory_goal: float | None = None
  rounds: int | None = None
  warm_ups: int = 1
  tolerance: float = 1e-3


@dataclasses.dataclass(frozen=True)
class Case:
  """One kind of work in one shape.

  Attributes:
    name: key in the results and of `--only`.
    title: description for readers.
    kind: the work: "offline", "online", "decode", "token_stats" or "prefix".
    shape: sizes of the work.
    matches: the comparisons.
    floor_goal: smallest acceptable share of the measured floor that `ours` reaches; None for none.
    floor: rows of the products whose rates make the floor; None for no floor.
  """

  name: str
  title: str
  kind: str
  shape: dict
  matches: tuple[Match, ...]
  floor_goal: float | None = None
  floor: int | None = None


OURS, OURS_LOW = Side("ours", "ours", "ours"), Side("ours, bfloat16", "ours", "ours", {"dtype": "bfloat16"})
OURS_KEPT = Side("ours, products kept", "ours", "ours", {"remat": "dots_no_batch"})
TRL, TRL_LOW = Side("TRL", "trl", "peer_trl"), Side("TRL, bf16 autocast", "trl", "peer_trl", {"dtype": "bfloat16"})
TRL_SLOW = Side("TRL, blocks recomputed (its default)", "trl", "peer_trl", {"checkpointing": True})
TUNIX = Side("Tunix", "tunix", "peer_tunix")
GENERATE = Side("transformers generate", "trl", "peer_trl")
GENERATE_LOW = Side("transformers generate, bfloat16", "trl", "peer_trl", {"dtype": "bfloat16"})
ROUGH = 0.1  # Tolerance of half precision: wide, but far below the error of a wrong batch.


def _token_stats(way: str) -> Side:
  return Side(way, "ours", "token_stats", {"way": way})


def _prefix(way: str) -> Side:
  return Side(way, "ours", "prefix", {"way": way})


ALL = (
  Case(
    "offline",
    "DPO step with the reference's pass, 4 pairs; prompt 128, responses 128 tokens: 8 sequences of 256 for the peers,"
    " 4 rows of prompt and both responses for ours; TRL's activations are kept, which is faster, or recomputed",
    "offline",
    {"pairs": 4, "prompt": 128, "response": 128},
    (
      Match(OURS, TRL, goal=2.5, memory_goal=0.5),
      Match(OURS, TUNIX, goal=1.4, warm_ups=2),
      Match(OURS_KEPT, TRL),
      Match(OURS, TRL_SLOW, rounds=1),
    ),
    floor=1024,
  ),
  Case(
    "offline_bfloat16",
    "the same step with bfloat16 products, weights and sums in float32; TRL under its bf16 autocast",
    "offline",
    {"pairs": 4, "prompt": 128, "response": 128},
    (Match(OURS_LOW, TRL_LOW, tolerance=ROUGH),),
    floor=1024,
  ),
  Case(
    "online",
    "GRPO step with sampling and the reference's pass, 1 prompt of 64 tokens, 32 samples of 32",
    "online",
    {"prompts": 1, "group": 32, "prompt": 64, "response": 32, "micro_batch": 32},
    (Match(OURS, TRL, goal=6.0),),
    floor=1024,
  ),
  Case(
    "online_bfloat16",
    "the same step with bfloat16 products, weights and sums in float32; TRL under its bf16 autocast",
    "online",
    {"prompts": 1, "group": 32, "prompt": 64, "response": 32, "micro_batch": 32},
    (Match(OURS_LOW, TRL_LOW, tolerance=ROUGH),),
    floor=1024,
  ),
  Case(
    "online_large",
    "the online step in float32 with 8 prompts of 64 tokens, 16 samples of 64 each; TRL in 4 parts of 32 samples",
    "online",
    {"prompts": 8, "group": 16, "prompt": 64, "response": 64, "micro_batch": 32},
    (Match(OURS, TRL, goal=4.0, rounds=1),),
    floor=1024,
  ),
  Case(
    "decode",
    "sampling 8 prompts of 64 tokens x 16 samples x 64 tokens; ours also returns log-probs and entropies",
    "decode",
    {"prompts": 8, "group": 16, "prompt": 64, "response": 64},
    (Match(OURS, GENERATE, goal=4.0), Match(OURS, TUNIX, goal=3.0)),
    floor_goal=0.6,
    floor=128,
  ),
  Case(
    "decode_bfloat16",
    "the same sampling with bfloat16 products and cache; the peer's whole model in bfloat16",
    "decode",
    {"prompts": 8, "group": 16, "prompt": 64, "response": 64},
    (Match(OURS_LOW, GENERATE_LOW, tolerance=ROUGH),),
    floor=128,
  ),
  Case(
    "token_stats",
    "log-prob and entropy of 1,024 tokens with both gradients; width 896, vocabulary 151,936",
    "token_stats",
    {"tokens": 1024, "width": 896, "vocabulary": 151_936},
    (Match(_token_stats("chunked"), _token_stats("plain"), goal=1 / 1.15, tolerance=1e-5),),
  ),
  Case(
    "prefix",
    "training step of a group of 32 answers of 32 tokens to one prompt of 512: the prompt once, or with each answer",
    "prefix",
    {"group": 32, "prompt": 512, "response": 32},
    (Match(_prefix("shared"), _prefix("unshared"), goal=8.0, rounds=2),),
  ),
)

TINY = {
  "offline_bfloat16": {"pairs": 2, "prompt": 16, "response": 16},
  "offline": {"pairs": 2, "prompt": 16, "response": 16},
  "online": {"prompts": 1, "group": 4, "prompt": 16, "response": 8, "micro_batch": 4},
  "online_bfloat16": {"prompts": 1, "group": 4, "prompt": 16, "response": 8, "micro_batch": 4},
  "online_large": {"prompts": 2, "group": 4, "prompt": 16, "response": 8, "micro_batch": 4},
  "decode": {"prompts": 2, "group": 4, "prompt": 16, "response": 8},
  "decode_bfloat16": {"prompts": 2, "group": 4, "prompt": 16, "response": 8},
  "token_stats": {"tokens": 64, "width": 32, "vocabulary": 512},
  "prefix": {"group": 4, "prompt": 32, "response": 8},
}


def chosen(names: list[str], tiny: bool) -> list[Case]:
  """Returns the cases of the given names, in tiny shapes for a rehearsal.

  Raises:
    InputError: a name is unknown.
  """
  by_name = {case.name: case for case in ALL}
  if unknown := [name for name in names if name not in by_name]:
    raise InputError(f"no case is called {unknown[0]!r}; choose from {', '.join(by_name)} and scaling")
  cases = [by_name[name] for name in names]
  return (
    [dataclasses.replace(case, shape=TINY[case.name], floor=case.floor and 16) for case in cases] if tiny else cases
  )
