"""The measurements in order of worth: one case of each kind first, then the others."""

from collections.abc import Iterator

from experiments.benchmarks.device import models
from experiments.benchmarks.device.schedule import Case
from experiments.benchmarks.device.schedule import Part
from experiments.compile import memory
from experiments.compile.roofline import WIDTHS
from experiments.compile.roofline import Batch

MARGIN = 1.15  # Of estimated memory.
RANK = 32
_FULL_SECONDS, _TINY_SECONDS = 180.0, 300.0


def all_parts(*, tiny: bool, planted: bool = False) -> list[Part]:
  """Every part; small shapes run on a CPU in minutes.

  Args:
    tiny: small shapes.
    planted: three cases that fail are among them: one raises, one hangs, one needs more memory than there is.
  """
  first = [("ceilings", "ceilings", _ceilings(tiny))]
  core = [
    ("agreement", "agreement", _agreement(tiny, (("bfloat16", "auto", "default"), ("float32", "auto", "highest")))),
    ("attention", "attention", _attention(tiny, 0)),
    ("token_stats", "token_stats", _token_stats(tiny, "0.5b")),
    *((f"decode {model}", "decode", _decode(tiny, model, ((2, "bfloat16"),))) for model in ("0.5b", "8b")),
    ("training 0.5b", "training", _training(tiny, "0.5b", 0, (("offline", 0, "full"), ("online", 0, "full")))),
    ("training 1.5b", "training", _training(tiny, "1.5b", 0, (("offline", 0, "full"),))),
    ("training 8b, adapters", "training", _training(tiny, "8b", RANK, (("offline", 0, "full"),))),
    ("GRPO 7b", "grpo", _grpo(tiny, "7b", (RANK,))),
  ]
  others = ((1, "bfloat16"), (0, "bfloat16"), (3, "bfloat16"), (2, "int8"), (3, "int8"), (0, "int8"), (1, "int8"))
  long = (("offline", 1, "full"), ("online", 1, "full"))
  kept = (("offline", 0, "dots_no_batch"), ("offline", 0, "none"))
  more = [
    *((f"decode {model}, more", "decode", _decode(tiny, model, others)) for model in ("8b", "0.5b")),
    ("decode 1.5b", "decode", _decode(tiny, "1.5b", ((2, "bfloat16"), *others))),
    ("training 8b", "training", _training(tiny, "8b", 0, (("offline", 0, "full"), ("online", 0, "full"), *long))),
    ("training 1.5b, more", "training", _training(tiny, "1.5b", 0, (("online", 0, "full"), *long, *kept))),
    ("training 8b, adapters, more", "training", _training(tiny, "8b", RANK, (("online", 0, "full"), *long, *kept))),
    ("training 0.5b, more", "training", _training(tiny, "0.5b", 0, (*long, *kept))),
    ("GRPO, more", "grpo", _grpo(tiny, "7b", (0,)) + _grpo(tiny, "0.5b", (0,)) + _grpo(tiny, "1.5b", (0,))),
    ("attention, more", "attention", _attention(tiny, 1)),
    ("token_stats, more", "token_stats", _token_stats(tiny, "8b")),
    (
      "agreement, more",
      "agreement",
      _agreement(tiny, (("float32", "auto", "default"), ("bfloat16", "bfloat16", "default"), ("bfloat16", "int8", "default"))),
    ),
  ]  # fmt: skip
  bad = [("planted", "planted", _planted())] if planted else []
  limit = _TINY_SECONDS if tiny else _FULL_SECONDS
  found = [Part(name, kind, tuple(cases), limit) for name, kind, cases in (*first, *bad, *core, *more)]
  return [part._replace(seconds=10.0) if part.kind == "planted" else part for part in found]


def _planted() -> list[Case]:
  cases = [Case(how, {"how": how}) for how in ("raise", "hang", "crash")]
  return [*cases, Case("memory", {"how": "memory"}, needs=2**50), Case("the next", {"how": "nothing"})]


def _ceilings(tiny: bool) -> list[Case]:
  product, copy = (512, 2**22) if tiny else (8192, 2**28)
  return [
    Case("device", {"what": "device"}),
    Case("product", {"what": "product", "size": product}, needs=6 * product**2),
    Case("copy", {"what": "copy", "size": copy}, needs=12 * copy),
  ]


def _agreement(tiny: bool, kinds) -> list[Case]:
  batch = Batch(2, 16, 4, 16, 16) if tiny else Batch(8, 128, 4, 128)
  return [
    Case(
      f"{dtype}, cache {cache}, {precision} precision",
      {
        "model": "0.5b",
        "tiny": tiny,
        "dtype": dtype,
        "kv_cache": cache,
        "precision": precision,
        "batch": batch._asdict(),
      },
      needs=_sampling_bytes(_shape("0.5b", tiny, dtype=dtype), batch, "float32", stored=4),
    )
    for dtype, cache, precision in kinds
  ]


def _attention(tiny: bool, length: int) -> list[Case]:
  batch = _batch("online", tiny, length, rows=2 if tiny else (4, 1)[length])
  shape = _shape("8b", tiny)
  scores = 4 * shape.num_heads * batch.rows * (sum(batch.columns(True)) ** 2)
  return [
    Case(
      f"{path}, {sum(batch.columns(True))} tokens",
      {"model": "8b", "tiny": tiny, "path": path, "batch": batch._asdict(), "repeats": 3},
      needs=6 * scores,
    )
    for path in ("cudnn", "xla", "whole rows, cudnn", "whole rows")
  ]


def _token_stats(tiny: bool, model: str) -> list[Case]:
  shape, tokens = _shape(model, tiny), 64 if tiny else 4096
  sizes = {"tokens": tokens, "width": shape.hidden_size, "vocab": shape.vocab_size}
  needs = 4 * (6 * shape.vocab_size * shape.hidden_size + 4 * tokens * shape.hidden_size + 512 * shape.vocab_size)
  return [
    Case(f"{implementation}, {dtype}, {model}", {**sizes, "dtype": dtype, "implementation": implementation, "repeats": 3}, needs)
    for implementation, dtype in (("xla", "bfloat16"), ("pallas", "bfloat16"), ("xla", "float32"), ("pallas", "float32"))
  ]  # fmt: skip


def _decode(tiny: bool, model: str, which) -> list[Case]:
  found = []
  for size, cache in which:
    rows, group = ((1, 1), (2, 2), (2, 4), (2, 8))[size] if tiny else ((1, 1), (4, 8), (16, 8), (32, 8))[size]
    batch = Batch(rows, 16, group, 16, 16) if tiny else Batch(rows, 512, group, 256)
    settings = {"model": model, "tiny": tiny, "kv_cache": cache, "batch": batch._asdict(), "repeats": 3}
    needs = _sampling_bytes(_shape(model, tiny), batch, cache, stored=2)
    found.append(Case(f"{rows * group} samples, cache {cache}", settings, needs))
  return found


def _training(tiny: bool, model: str, rank: int, which) -> list[Case]:
  found = []
  dtype = "bfloat16" if model in ("7b", "8b") else "float32"  # Stored parameters and moments.
  for step, length, remat in which:
    batch = _batch(step, tiny, length, rows=2 if tiny else (8, 2)[length])
    shape = _shape(model, tiny, remat=remat)
    settings = {"model": model, "tiny": tiny, "step": step, "remat": remat, "rank": rank, "dtype": dtype}
    settings |= {"batch": batch._asdict(), "repeats": 3}
    name = f"{step}, {sum(batch.columns(True))} tokens, remat {remat}"
    found.append(Case(name, settings, _training_bytes(shape, batch, rank, dtype, step == "online", tiny)))
  return found


def _grpo(tiny: bool, model: str, ranks) -> list[Case]:
  found = []
  for rank in ranks:
    dtype = "bfloat16" if model == "7b" else "float32"
    batch, shape = Batch(2, 16, 4, 16, 16) if tiny else Batch(16, 256, 8, 256), _shape(model, tiny)
    settings = {"model": model, "tiny": tiny, "rank": rank, "dtype": dtype, "kv_cache": "bfloat16"}
    settings |= {"batch": batch._asdict(), "repeats": 2}
    width = WIDTHS[dtype]
    sizes = dict(rank=rank, stored=width, moments=width, reference=True, scores=tiny)
    needs = memory.online(shape, batch, kind="bfloat16", **sizes)
    found.append(Case(f"{model}, {'adapters' if rank else 'all weights'}", settings, int(MARGIN * needs)))
  return found


def _batch(step: str, tiny: bool, length: int, *, rows: int) -> Batch:
  """Rows of 2,048 or 8,192 columns; 64 or 128 for a CPU."""
  if tiny:
    prompt, group, response = (16, 2, 25) if step == "offline" else (16, 4, 13)
    scale = (1, 2)[length]
    return Batch(rows, scale * prompt, group, scale * response - (scale - 1), 16)
  sizes = {"offline": ((512, 2, 768), (2048, 2, 3072)), "online": ((256, 8, 224), (1024, 8, 896))}
  return Batch(rows, *sizes[step][length])


def _shape(model: str, tiny: bool, *, dtype="bfloat16", **options):
  return models.config(model, tiny=tiny, compute_dtype=dtype, **options)


def _sampling_bytes(shape, batch: Batch, cache: str, *, stored: int) -> int:
  return int(MARGIN * sum(memory.sampling(shape, batch, kind=cache, stored=stored).values()))


def _training_bytes(shape, batch: Batch, rank: int, dtype: str, online: bool, tiny: bool) -> int:
  width = WIDTHS[dtype]
  found = memory.training(shape, batch, rank=rank, stored=width, moments=width, reference=online, scores=tiny)
  return int(MARGIN * sum(found.values()))


def selected(parts: list[Part], only: str) -> Iterator[Part]:
  """The parts with that text in their name; the device itself is always asked."""
  for part in parts:
    if only in part.name or part.kind == "ceilings":
      yield part
