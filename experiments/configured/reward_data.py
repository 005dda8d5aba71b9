"""The `reward_model` group of a config -> pairs parted by prompt."""

import hashlib
import json
import pathlib
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from experiments.batches.reward_rows import PARTS
from experiments.batches.reward_rows import RewardData
from experiments.configured import data as build_data
from qempo_jax.data import pair_tokens
from qempo_jax.data import preferences
from qempo_jax.errors import InputError


def parts(config: ConfigDict, tokenizer: Any) -> dict[str, RewardData]:
  """The pairs of every part of `PARTS`; no prompt is in two of them.

  A prompt of a held-out file is held out wherever it occurs; of the others a share is, by a hash of the prompt, so
  that the parting depends on neither order nor seed.

  Raises:
    InputError: a file cannot be read, or a part that is needed has no pairs.
  """
  r = config.reward_model
  _check(r)
  if config.lora.rank:
    raise InputError("reward models are trained without adapters: set lora.rank to 0 and choose reward_model.trainable")
  kept = _read(config, r.heldout, tokenizer)
  measured = {_key(pair) for _, found in kept for pair in found}
  by_name: dict[str, list] = {part: [] for part in PARTS}
  for name, found in _read(config, r.sources, tokenizer):
    by_part: dict[str, list] = {part: [] for part in PARTS}
    for pair in found:
      by_part["heldout" if _key(pair) in measured else _part(_key(pair), r)].append(pair)
    by_name["heldout"].append((name, by_part["heldout"]))
    by_name["train"].append((name, by_part["train"]))
    by_name["validation"].append((name, by_part["validation"]))
  by_name["heldout"] = [*kept, *by_name["heldout"]]
  shares = {"train": 1 - r.validation_share, "validation": r.validation_share}
  most = {part: r.pairs_per_source and max(1, int(r.pairs_per_source * share + 0.5)) for part, share in shares.items()}
  most["heldout"] = r.heldout_per_source
  return {part: _encoded(config, tokenizer, by_name[part], most[part], part) for part in PARTS}


def _encoded(config, tokenizer, named, most, part) -> RewardData:
  prompts, responses, margins, keys, sources, dropped = [], [], [], [], [], 0
  for name, found in named:
    if not found:
      continue
    try:
      encoded = pair_tokens.encode_pairs(
        tokenizer,
        found,
        responses=2,
        **build_data.limits(config),
        too_long="truncate" if config.reward_model.cut_responses else "drop",
        keep_ending=True,
      )
    except InputError:  # none fits
      dropped += len(found)
      continue
    dropped += encoded.dropped
    if encoded.unrendered:
      print(f"{name}: {encoded.unrendered} responses are rendered otherwise by the chat template; see inspect_data")
    take = slice(most or None)
    prompts += encoded.prompts[take]
    responses += encoded.responses[take]
    for row in encoded.rows[take]:
      margins.append(config.reward_model.margin_scale * _score_gap(row))
      keys.append(_key((row,)))
      sources.append(str(row.get("source", name)))
  if not prompts:
    raise InputError(
      f"no pair is left for {part}: raise data.max_prompt_length={config.data.max_prompt_length},"
      f" sampling.max_response_length={config.sampling.max_response_length} or the share of its prompts"
    )
  return RewardData(prompts, responses, np.array(margins, np.float32), np.array(keys), np.array(sources), dropped)


def _read(config, sources, tokenizer) -> list[tuple[str, list[preferences.Preference]]]:
  """(name, pairs) of each file; files of one name are told apart by their folders."""
  found, stems = [], [pathlib.Path(source).name for source in sources]
  for source in sources:
    kind, _, path = source.partition(":")
    if kind != "jsonl" or not path:
      raise InputError(f"reward_model source {source!r} is not known; use jsonl:PATH")
    name = pathlib.Path(path).name.removesuffix(".gz").removesuffix(".jsonl")
    if stems.count(pathlib.Path(source).name) > 1:
      name = f"{pathlib.Path(path).parent.name}/{name}"
    options = {"tokenizer": tokenizer} | build_data.bad_rows(config)
    found.append((name, preferences.load_preferences(source, rejected=True, **options)))
  return found


def _part(key: str, r) -> str:
  place = int(key, 16) / 16 ** len(key)
  if place < r.heldout_share:
    return "heldout"
  return "validation" if place < r.heldout_share + r.validation_share else "train"


def _key(pair) -> str:
  """A hash of a pair's prompt."""
  return hashlib.sha256(json.dumps(pair[0]["prompt"]).encode()).hexdigest()[:16]


def _score_gap(row) -> float:
  try:
    return float(row["score_chosen"]) - float(row["score_rejected"])
  except (KeyError, TypeError, ValueError):
    return 0.0


def _check(r) -> None:
  for wrong, advice in (
    (not r.sources, "reward_model.sources names no file of pairs; give jsonl:PATH"),
    (
      r.heldout_share + r.validation_share >= 1,
      "reward_model.heldout_share and validation_share must be together below 1",
    ),
    (r.cache and r.trainable == "all", "reward_model.cache needs frozen blocks: set trainable to head or last:N"),
  ):
    if wrong:
      raise InputError(f"{advice} (config.reward_model)")
