"""The `data`, `reward`, `sampling` and `offline` groups of a config -> prompts, rewards and pairs."""

from collections.abc import Callable
import itertools
import math
import os
import pathlib
from typing import Any

from ml_collections import ConfigDict

from experiments.batches.pair_rows import PairRows
from experiments.configured import constraints as build_constraints
from experiments.plan import PairSettings
from experiments.plan import Policy
from qempo_jax import offline_losses
from qempo_jax.data import columns
from qempo_jax.data import formats
from qempo_jax.data import pair_tokens
from qempo_jax.data import preferences
from qempo_jax.data import prompts
from qempo_jax.data import scored
from qempo_jax.data import sources
from qempo_jax.data.examples import Preference
from qempo_jax.data.examples import Scored
from qempo_jax.errors import InputError
from qempo_jax.rewards import checked
from qempo_jax.rewards import compose
from qempo_jax.rewards import registry


def training_rows(config: ConfigDict, tokenizer: Any = None) -> list[prompts.Row]:
  """The prompts to train on, with their columns; rows that the tokenizer's chat template refuses are bad rows."""
  d = config.data
  own = {"sets": tuple(d.sets), "wordings": tuple(d.wordings), "tokenizer": tokenizer}
  return prompts.load_rows(d.source, **own, **bad_rows(config))


def bad_rows(config: ConfigDict) -> dict[str, Any]:
  """The treatment of rows that do not fit, for readers of files."""
  return {"on_bad_row": config.data.on_bad_row, "max_bad_share": config.data.max_bad_share, "note": print}


_SPLITS = {
  "open_list": ("train", "validation_wordings", "heldout_wordings", "heldout_set"),
  "countdown": ("train", "validation", "heldout"),
}


def evaluation_rows(config: ConfigDict) -> list[prompts.Row]:
  """The prompts that are evaluated: splits of the task, or sources; held-out sets are asked for in the trained wordings."""
  splits, most = config.evaluation.splits, config.evaluation.max_prompts or None
  own = _SPLITS.get(config.data.source)
  for split in splits:
    if (split not in own) if own else (":" not in split):
      remedy = f"choose of {', '.join(own)}" if own else f"write jsonl:{split} for a file, or name another source"
      raise InputError(f"evaluation.splits={split!r} is no split of data.source={config.data.source}: {remedy}")
  if config.data.source == "countdown":
    return [row for split in splits for row in prompts.countdown_rows(split)[:most]]
  if config.data.source != "open_list":
    names = [split.rpartition("/")[2] for split in splits]
    if len(set(names)) < len(set(splits)):  # files of one name in several folders
      names = [split.partition(":")[2] for split in splits]
    parts = zip(dict.fromkeys(splits), dict.fromkeys(names), strict=True)
    return [row | {"split": name} for split, name in parts for row in prompts.load_rows(split)[:most]]
  sets, wordings = tuple(config.data.sets), tuple(config.data.wordings)
  chosen = {
    "train": {"sets": sets, "wordings": wordings},
    "validation_wordings": {"sets": sets},
    "heldout_wordings": {"sets": sets},
    "heldout_set": {"wordings": wordings},
  }
  return [row for split in splits for row in prompts.open_list_rows(split, **chosen[split])[:most]]


def evaluation_prompts(config: ConfigDict) -> list[prompts.Row]:
  """The prompts to sample; a benchmark's split is named after its file."""
  e = config.evaluation
  if not e.prompts:
    of_tasks = set(e.splits) <= {*itertools.chain(*_SPLITS.values())}  # as the defaults are
    if e.splits and (config.data.source in _SPLITS or not of_tasks):
      return _once(evaluation_rows(config))
    print("Prompts: those that are trained on; name others by evaluation.prompts, or sources by evaluation.splits")
    return training_rows(config)[: e.max_prompts or None]
  source = os.path.expandvars(e.prompts)
  if "$" in source:
    raise InputError(
      f"evaluation.prompts={e.prompts} names an environment variable that is not set; set it, or give the path"
    )
  path = pathlib.Path(source.partition(":")[2])
  stem = path.name.removesuffix(".gz").partition(".")[0]
  name = path.parent.name if stem == "question" else stem
  rows = prompts.load_rows(source, **bad_rows(config))
  return _once([row | {"split": name} for row in rows[: e.max_prompts or None]])


def _once(rows: list[prompts.Row]) -> list[prompts.Row]:
  """The rows without repetitions, which would be more samples of some prompts than of others."""
  found = list({columns.whole_row(row): row for row in rows}.values())
  if again := len(rows) - len(found):
    print(f"Prompts: {again} of {len(rows)} stand there once more, and are asked once")
  return found


def evaluation_reward(config: ConfigDict, rows=None) -> Callable:
  """The reward function that judges: the evaluation's own, else the run's.

  Raises:
    InputError: as `reward`; or rows are given, and a function needs a column that they lack.
  """
  found = registry.resolve(config.evaluation.reward) if config.evaluation.reward else reward(config)
  return found if rows is None else _fitting(found, rows)


def reward(config: ConfigDict) -> Callable:
  """The reward function that the config names, or the composition of several.

  Raises:
    InputError: a function cannot be made, or a quality floor is set on a sum that is not in the rewards' own units.
  """
  r = config.reward
  if not r.functions and not r.function:
    raise InputError(
      "reward.function names no reward: set it to a short name of qempo_jax/rewards/registry.py, or to a dotted path such as"
      " my_rewards.polite, a function in a file my_rewards.py in the folder you start from"
    )
  if not r.functions:
    function = registry.resolve(r.function)
    terms = [compose.Term("reward", function)]
    return function if r.unscored is None else compose.Composition(terms, unscored=r.unscored)
  composed = compose.Composition(
    [_term(entry) for entry in build_constraints.reward_entries(config)], unscored=r.unscored
  )
  moving = [term.name for term in composed.terms if term.weight and term.normalise != "none"]
  if moving and config.constraints.quality.bound is not None:
    raise InputError(
      f"reward {moving[0]!r} is normalised, so constraints.quality.bound has no fixed meaning: set its normalisation to"
      ' "none", or the bound to none and a floor on that reward'
    )
  if composed.floors and (config.offline.loss is not None or config.replay.size):
    raise InputError(
      f"reward {next(iter(composed.floors))!r} has a floor, which only online training without replay enforces:"
      " set offline.loss to none and replay.size to 0, or the floor to None"
    )
  return composed


def reward_for(config: ConfigDict, rows) -> Callable:
  """`reward`, once the columns that it needs are found in the rows.

  Raises:
    InputError: as `reward`; or a function needs a column that the rows lack.
  """
  return _fitting(reward(config), rows)


def _fitting(function: Callable, rows) -> Callable:
  there = {name for row in rows for name in row} - {"prompt"}
  for one in [term.function for term in function.terms] if isinstance(function, compose.Composition) else [function]:
    checked.check_columns(one, there)
  return function


def reward_names(config: ConfigDict) -> tuple[str, ...]:
  """Names of the rewards that samples get, "reward" first."""
  return tuple(dict.fromkeys(["reward", *(entry.name for entry in build_constraints.reward_entries(config))]))


def pairs(config: ConfigDict, tokenizer: Any) -> list[Preference | Scored]:
  """The pairs of `offline.pairs=source`; for losses of lists scored responses, of pairs where the data has no others."""
  if config.data.source != "open_list":
    return read_pairs(config, config.data.source, tokenizer)
  rows = training_rows(config)
  return preferences.open_list_preferences(rows, per_prompt=config.offline.pairs_per_prompt, seed=config.seed)


def read_pairs(config: ConfigDict, source: str, tokenizer: Any) -> list[Preference | Scored]:
  """The pairs of a file, or its scored responses for losses of lists."""
  o, entry = config.offline, offline_losses.LOSSES[config.offline.loss]
  if entry.lists:
    return preferences.load_scored(source, tokenizer=tokenizer, **bad_rows(config))
  options = {"rejected": entry.responses > 1, "acceptable": o.acceptable, "most": o.pairs_per_prompt}
  return preferences.load_preferences(source, tokenizer=tokenizer, **options, **bad_rows(config))


def samples_as_pairs(config: ConfigDict, known: bool) -> Callable:
  """(index of a prompt, its row, samples as token ids, rewards) -> inputs of the loss.

  Args:
    config: a complete config.
    known: pair known answers with bad samples, rather than the best and worst samples.
  """
  most, lists = config.offline.pairs_per_prompt, offline_losses.LOSSES[config.offline.loss].lists
  if known:
    seed = lambda place: (config.seed, place)
    return lambda place, *group: preferences.answers_against_samples(*group, per_prompt=most, seed=seed(place))
  if lists:
    return lambda place, *group: [scored.of_samples(*group)]
  return lambda place, *group: preferences.sampled_preferences(*group, most=most)


def encoded(config: ConfigDict, policy: Policy, found) -> pair_tokens.PairTokens:
  """Pairs as token ids, with as many responses each as the loss reads; or scored responses for losses of lists."""
  o, entry = config.offline, offline_losses.LOSSES[config.offline.loss]
  options = {"forbidden": policy.config.forbidden, "too_long": config.data.too_long} | limits(config)
  if entry.lists:
    lists = {"size": o.list_size, "acceptable": o.acceptable}
    return scored.encode_lists(policy.tokenizer, scored.gather(found), **lists, **options)
  return pair_tokens.encode_pairs(policy.tokenizer, found, responses=entry.responses, **options)


def pair_rows(config: ConfigDict, found: pair_tokens.PairTokens) -> tuple[PairRows, int]:
  """(the packed rows of every step of a run on these pairs, batches of an epoch)."""
  o = config.offline
  window, responses = config.data.length_window, len(found.responses[0])
  settings = PairSettings(o.pairs_per_step, o.pairs_per_row, window, o.measure_every, o.log_change, responses)
  lengths = {"bucket": config.compute.bucket, "max_length": config.sampling.max_response_length}
  return PairRows(found, settings, seed=config.seed, **lengths), len(found.rows) // o.pairs_per_step


def limits(config: ConfigDict) -> dict[str, int]:
  """The longest prompt and response that are trained on, in tokens, as `encode_pairs` takes them."""
  return {
    "max_prompt_length": config.data.max_prompt_length,
    "max_response_length": config.sampling.max_response_length,
  }


def examples(config: ConfigDict, tokenizer: Any = None) -> tuple[list[Preference], str]:
  """Rows that a run of this config reads, to be inspected, and a line about them; a template's refusals are bad rows.

  Of scored responses, for losses of lists, each stands on its own.
  """
  loss, source = config.offline.loss, config.data.source
  from_source = loss and config.offline.pairs == "source"
  if source in ("open_list", "countdown"):
    rows = training_rows(config)
    if source == "open_list" and from_source:
      made = pairs(config, tokenizer)
      return made, f"{source}: {len(made):,} pairs of {len(rows):,} prompts"
    return [Preference(row, None, None) for row in rows], f"{source}: {len(rows):,} prompts"
  needs = formats.PROMPT
  if from_source:
    entry = offline_losses.LOSSES[loss]
    needs = formats.SCORED if entry.lists else formats.PAIR if entry.responses > 1 else formats.COMPLETION
  options = {key: value for key, value in bad_rows(config).items() if key != "note"}
  loaded = sources.load(source, needs=needs, tokenizer=tokenizer, **options)
  o, lists = config.offline, needs == formats.SCORED
  found = scored.gather(loaded.examples) if lists else loaded.examples
  least = -math.inf if lists else o.acceptable
  made = scored.separate(found, responses=1 + (needs == formats.PAIR), acceptable=least, most=o.pairs_per_prompt)
  return made, f"{source}: {loaded.line()}"


def _term(entry: build_constraints.RewardEntry) -> compose.Term:
  return compose.Term(entry.name, registry.resolve(entry.function), *entry[2:])
