"""Rooflines of every paper config on paper, beside the compiled programs' own counts, and the page for one card.

  python -m experiments.studies.roofline_tables

Writes docs/roofline.md from `experiments.compile.roofline` and docs/results/compile_check.json, and the tables of
docs/one_card.md from `experiments.compile.memory`. Everything there is computed, nothing measured.
"""

from collections.abc import Iterator
import dataclasses
import math
import pathlib

from configs.paper import models
from experiments import cli
from experiments.compile import chips
from experiments.compile import memory
from experiments.compile import roofline
from experiments.compile.chips import Chip
from experiments.compile.roofline import WIDTHS
from experiments.compile.roofline import Batch
from experiments.configured import policy as build_policy
from experiments.studies import compile_table
from experiments.studies.compile_table import ROOT
from qempo_jax.models import presets
from qempo_jax.models.config import ModelConfig
from qempo_jax.paths import write_atomically

GIB = 2**30
ROOFLINE_PAGE, CARD_PAGE = ROOT / "docs" / "roofline.md", ROOT / "docs" / "one_card.md"
MARK = "<!-- {}: made by experiments/studies/roofline_tables.py -->"
CHIPS = {"H100": chips.GPUS["h100"], "H200": chips.GPUS["h200"], **chips.CHIPS}
# Shares of the peaks that "expected" seconds assume: the goals of `experiments.benchmarks.device`.
COMPUTE, BANDWIDTH = 0.4, 0.5
SYSTEM = 0.9  # Share of a card's memory that a run may take.
MARGIN = 1.15  # Of estimated memory.


def paper_config(name: str) -> tuple[ModelConfig, Batch, bool, int]:
  """(decoder, batch of an update, True if online, devices) of a paper config."""
  config = cli.complete_config(ROOT / name, [])
  shape = build_policy.model_config_of(config.model.source)
  online = "/online" in name
  sizes = (
    config.data.max_prompt_length,
    config.sampling.group_size if online else 2,
    config.sampling.max_response_length,
  )
  rows = config.data.prompts_per_step if online else config.offline.pairs_per_step
  batch = Batch(rows, *sizes, config.compute.bucket)
  return dataclasses.replace(shape, compute_dtype=config.compute.dtype), batch, online, math.prod(config.compute.mesh)


def names() -> Iterator[tuple[str, str]]:
  """(config, short name) of every task and model; the methods of a task have one program."""
  for task in compile_table.TASKS:
    for model in models.MODELS:
      yield f"configs/paper/{task}.py:{model},{compile_table.METHOD}", f"{task}, {model}"


def parts_table() -> str:
  """FLOP and bytes of the parts of every config, all devices together."""
  head = ("config", "scorer", "backward", "optimizer", "a decode step", "all decode steps")
  rows = []
  for name, short in names():
    config, batch, online, devices = paper_config(name)
    # Each device reads all weights for its rows, a row at a time.
    one, parts = batch._replace(rows=1), batch.rows
    cells = [roofline.scorer(config, one, stored=2).times(parts), roofline.backward(config, one, stored=2).times(parts)]
    cells.append(roofline.optimizer(presets.num_params(config)))
    if online:
      sizes = dict(prompts=batch.rows / devices, group=batch.group, prompt=batch.prompt, kind="float32")
      step = roofline.decode_step(config, past=batch.response / 2, **sizes).times(devices)
      cells += [step, step.times(batch.response)]
    rows.append([f"{short}, {devices} chips", *(f"{w.flops / 1e12:,.4g} / {w.bytes / 1e9:,.4g}" for w in cells)])
  return _table(head, [row + [""] * (len(head) - len(row)) for row in rows])


def chips_table() -> str:
  """Least seconds of an update and of its samples, on the config's number of chips of each kind."""
  rows = []
  for name, short in names():
    config, batch, online, devices = paper_config(name)
    update = roofline.training_step(
      config, batch, micro_batches=max(1, batch.rows // devices), reference=online, stored=2, devices=devices
    )
    work = [update]
    if online:
      work.append(roofline.sampling(config, batch._replace(rows=batch.rows / devices), kind="float32"))
    rows.append([f"{short}, {devices} chips", *(" + ".join(_bound(w, chip) for w in work) for chip in CHIPS.values())])
  return _table(("config", *CHIPS), rows)


def compiled_table() -> str:
  """FLOP and bytes on paper over those of the compiled program, one device."""
  rows = []
  for entry, found in sorted(compile_table.results().items()):
    name, topology = entry.split(" on ")
    config, batch, online, _ = paper_config(name)
    task = f"{pathlib.Path(name.split('.py')[0]).name}, {name.split(':')[1].split(',')[0]}"
    for program in found["programs"]:
      if program["name"].endswith("_step"):
        ways, parts = _split(name, "compute")
        sizes = dict(micro_batches=max(1, batch.rows // ways), reference=online, stored=2, devices=ways)
        flops = roofline.training_step(config, batch, computed=True, **sizes).flops / parts
        least = roofline.training_step(config, batch, **sizes).bytes / parts
      elif program["name"] == "sampler":
        ways, parts = _split(name, "sampling")
        flops, least = roofline.sampling(config, batch._replace(rows=batch.rows / ways), kind="float32").times(
          1 / parts
        )
      else:
        continue
      share = lambda x, of: f"{x:.4g} / {of:.4g} = {x / of:.2f}"
      cells = (share(flops / 1e12, program["flops"] / 1e12), share(least / 1e9, program["hbm_bytes"] / 1e9))
      rows.append([task, topology, program["name"], *cells])
  return _table(("config", "slice", "program", "TFLOP, paper / compiled", "GB, least / compiled"), rows)


def _split(name: str, section: str) -> tuple[int, int]:
  """(devices that rows are split over, devices that a row is split over) of a config's mesh; `section` has it."""
  config = cli.complete_config(ROOT / name, [])
  mesh = config[section].mesh or config.compute.mesh
  return math.prod(mesh[:2]), math.prod(mesh[2:])


def _bound(work, chip: Chip) -> str:
  compute, moved = work.flops / chip.flops, work.bytes / chip.hbm_bandwidth
  return f"{max(compute, moved):.2f}{'c' if compute > moved else 'm'}"


# Cards and slices of docs/one_card.md: name -> (chip, chips, compute dtype).
CARDS = {
  "8 GB (RTX 4060)": (chips.GPUS["rtx-4060"], 1, "bfloat16"),
  "T4 16 GB": (chips.GPUS["t4"], 1, "float32"),
  "L4 24 GB": (chips.GPUS["l4"], 1, "bfloat16"),
  "A100 40 GB": (chips.GPUS["a100-40gb"], 1, "bfloat16"),
  "H100 80 GB": (chips.GPUS["h100"], 1, "bfloat16"),
  "v5e-1": (chips.CHIPS["v5e"], 1, "bfloat16"),
  "v5e-8": (chips.CHIPS["v5e"], 8, "bfloat16"),
}
CARD_MODELS = ("smollm2-135m", "qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-7b", "llama-3.1-8b")
OFFLINE, ONLINE = Batch(1, 512, 2, 256), Batch(1, 256, 8, 256)
BATCH_SIZES = (64, 32, 16, 8)
# Ways to train, the first that fits is shown: (name, rank, dtype of stored parameters and moments).
WAYS = (("all weights, float32", 0, "float32"), ("all weights, bfloat16", 0, "bfloat16"), ("LoRA 32", 32, "bfloat16"))


def card_row(config: ModelConfig, card: str, online: bool) -> list[str]:
  """The way to train with the largest batch that fits: batch, memory, and seconds at assumed shares of the peaks."""
  chip, devices, dtype = CARDS[card]
  config = dataclasses.replace(config, compute_dtype=dtype, kv_cache=dtype)
  least = math.inf
  for way, rank, stored in WAYS:
    for rows in BATCH_SIZES:
      batch = (ONLINE if online else OFFLINE)._replace(rows=rows)
      micro = max(1, rows // devices)  # a row a device at a time
      needed = MARGIN * _peak(config, batch, online, rank, WIDTHS[stored], devices)
      least = min(least, needed)
      if needed <= SYSTEM * chip.hbm:
        sizes = dict(micro_batches=micro, devices=devices)
        update = _update(config, batch, online, rank, WIDTHS[stored], **sizes)
        seconds = update.seconds(chip, compute=COMPUTE, memory=BANDWIDTH)
        if online:
          drawn = roofline.sampling(config, batch._replace(rows=rows / devices), kind=dtype)
          seconds += drawn.seconds(chip, compute=COMPUTE, memory=BANDWIDTH)
        return [way, str(rows), f"{needed / GIB:.1f}", f"{seconds:.3g}", f"{rows * 3600 / seconds:,.0f}"]
  return [f"does not fit: at least {least / GIB:.1f} GiB of {SYSTEM * chip.hbm / GIB:.1f}", "", "", "", ""]


def _peak(config, batch, online, rank, stored, devices) -> float:
  """Bytes of the larger of update and sampling on one device; weights are sharded, but whole while they are used."""
  part = batch._replace(rows=-(-batch.rows // devices))
  found = memory.training(
    config, part, rank=rank, stored=stored, moments=stored, reference=online, scores=True, micro_batches=part.rows
  )
  held = sum(found[name] for name in memory.HELD) / devices
  update = held + found["gradient"] / devices + found["head"] + found["activations"]
  if not online:
    return update
  drawn = memory.sampling(config, part, kind=config.kv_cache, stored=stored)
  return max(update, held + sum(drawn[name] for name in ("parameters while sampling", "keys and values", "logits")))


def _update(config, batch, online, rank, stored, *, micro_batches, devices):
  if not rank:
    sizes = dict(micro_batches=micro_batches, devices=devices, reference=online, stored=stored)
    return roofline.training_step(config, batch, **sizes)
  part = batch._replace(rows=batch.rows / micro_batches / devices)
  step = roofline.scorer(config, part, rank=rank, stored=stored)
  step += roofline.backward(config, part, rank=rank, stored=stored)
  step += roofline.scorer(config, part, stored=stored) if online else roofline.Work(0, 0)
  return step.times(micro_batches)


def cards_table(online: bool) -> str:
  """Model by card."""
  head = (
    "model",
    "card",
    "trains",
    "rows an update",
    "peak memory, GiB",
    "seconds an update",
    "prompts an hour" if online else "pairs an hour",
    "",
  )
  rows = [
    [model, card, *card_row(presets.get(model), card, online), "computed"] for model in CARD_MODELS for card in CARDS
  ]
  return _table(head, rows)


def _table(head, rows) -> str:
  return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows)])


def _with(text: str, name: str, table: str) -> str:
  """The page with a table between its two marks."""
  start, end = MARK.format(name), f"<!-- {name} ends -->"
  before, rest = text.split(start)
  return f"{before}{start}\n\n{table}\n\n{end}{rest.split(end)[1]}"


def pages() -> dict[pathlib.Path, str]:
  """Both pages with their tables made anew."""
  roof, cards = (path.read_text(encoding="utf-8") for path in (ROOFLINE_PAGE, CARD_PAGE))
  for name, table in (("parts", parts_table), ("chips", chips_table), ("compiled", compiled_table)):
    roof = _with(roof, name, table())
  for name, online in (("offline", False), ("online", True)):
    cards = _with(cards, name, cards_table(online))
  return {ROOFLINE_PAGE: roof, CARD_PAGE: cards}


if __name__ == "__main__":
  for page, text in pages().items():
    write_atomically(page, text)
