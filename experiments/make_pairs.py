"""Makes preference pairs: samples a model, scores the samples, and pairs them.

  python -m experiments.make_pairs --config=configs/open_list.py --workdir=runs/pairs
      --config.make_pairs.select=rare_good_common_bad

The pairs are in WORKDIR/pairs.jsonl in TRL's shape, with the prompt apart; train on them with
--config.data.source=jsonl:WORKDIR/pairs.jsonl --config.offline.pairs=source. With make_pairs.select=scored all samples are
kept, in WORKDIR/scored.jsonl, which every offline loss reads. make_pairs.pool=jsonl:OTHER/scored.jsonl adds another model's,
and with make_pairs.sample=False nothing is sampled: the pairs are those of the pool.
"""

import json
import pathlib

import jax
import numpy as np

from experiments import build
from experiments import cli
from experiments import samples as sampling
from experiments.compile import dry_run as dry_runs
from experiments.configured import data as build_data
from experiments.configured import policy as build_policy
from experiments.configured import sampling as build_sampling
from experiments.run import workdir as workdirs
from experiments.run.parts import Parts
from qempo_jax.data import columns
from qempo_jax.data import formats
from qempo_jax.data import pair_selection
from qempo_jax.data import pair_tokens
from qempo_jax.data import scored
from qempo_jax.data import sources
from qempo_jax.data import templates
from qempo_jax.data.examples import Preference
from qempo_jax.errors import InputError
from qempo_jax.rewards import registry

FILE, SCORED_FILE = "pairs.jsonl", "scored.jsonl"


def main(config, workdir: pathlib.Path, dry_run: bool) -> None:
  """Samples every prompt of config.data once and writes the pairs."""
  build.check_one_method(config)
  select, pool = selection(config), _pool(config)
  if not config.make_pairs.sample:
    _of_pool(config, workdir, dry_run, pool, select)
    return
  policy = build_policy.policy(config)
  settings = build_sampling.sampling(config, policy)
  rows = build_data.training_rows(config, policy.tokenizer)
  sample, reward = sampling.GroupSampler(policy, settings, rows), build_data.reward_for(config, rows)
  seed = build.plan(config, policy, trains=False).seed
  print(f"{len(sample.rows)} prompts ({sample.dropped} too long), {settings.group_size} samples each")
  if words := build_sampling.in_words(settings):
    print(f"Samples: {words}")
  if dry_run:
    print(dry_runs.describe_sampling(settings, policy))
    return
  workdir = workdirs.open_workdir(workdir, config)
  hashed = columns.fingerprint([*sample.rows, *({"pool": of_prompt} for of_prompt in pool.values())])
  size, parts = settings.prompts, Parts(workdir / "make_pairs.part", hashed)

  def batches(first: int):
    for start in range(first, len(sample.rows), size):
      chosen = sample.rows[start : start + size]
      rng = jax.random.fold_in(jax.random.key(seed), start)
      samples = sample(policy.params, chosen + chosen[:1] * (size - len(chosen)), rng, settings.group_size)
      rewards = sampling.group_rewards(reward, samples)
      pairs = []
      for row, texts, cut, scores in zip(chosen, samples.texts, samples.rollout.truncated, rewards):
        _, more, of_more = pool.get(_key(row), (row, [], []))
        texts, scores, cut = [*texts, *more], [*scores, *of_more], [*cut, *[False] * len(more)]
        pairs.append(rows_of(row, texts, scores, cut, select))
      ended = int((~np.asarray(samples.rollout.truncated))[: len(chosen)].sum())
      yield {"pairs": pairs, "unscored": int(np.isnan(rewards[: len(chosen)]).sum()), "ended": ended}

  for _ in parts.extend(batches(len(parts.records) * size)):
    prompts = [pairs for record in parts.records for pairs in record["pairs"]]
    print(f"{len(prompts)}/{len(sample.rows)} prompts, {sum(map(len, prompts))} pairs", flush=True)
  prompts = [pairs for record in parts.records for pairs in record["pairs"]]
  found, without = [pair for pairs in prompts for pair in pairs], sum(not pairs for pairs in prompts)
  unscored, ended = (sum(record[name] for record in parts.records) for name in ("unscored", "ended"))
  drawn = len(sample.rows) * settings.group_size
  cut_off = f"{drawn - ended} of {drawn} samples were cut at sampling.max_response_length, and are left out"
  if not found:
    parts.remove()
    remedy = (
      f"{cut_off}: raise it" if ended < drawn / 2 else "raise sampling.group_size, or loosen make_pairs.good and bad"
    )
    raise InputError(f"no prompt's samples make a pair; {remedy}")
  _write(workdir, found, without, select)
  parts.remove()
  if ended < drawn:
    print(cut_off)
  if unscored:
    print(f"{unscored} samples could not be judged, and are left out")


def selection(config):
  """The function from (texts, rewards) to the places of pairs that the config asks for; None keeps all samples.

  Raises:
    InputError: an unknown choice.
  """
  c = config.make_pairs
  diversity = registry.resolve(c.diversity)
  ties = {"quantile": c.tie_quantile, "share": c.share, "uses": c.uses}
  choices = {
    "best_worst": lambda texts, rewards: pair_selection.best_worst(rewards, most=c.per_prompt),
    "rare_good_common_bad": lambda texts, rewards: pair_selection.rare_good_common_bad(
      rewards, pair_selection.rarities(texts), threshold=c.good, most=c.per_prompt
    ),
    "thresholds": lambda texts, rewards: pair_selection.thresholds(rewards, good=c.good, bad=c.bad, most=c.per_prompt),
    "equal_quality": lambda texts, rewards: pair_selection.equal_quality(
      rewards, diversity([""] * len(texts), texts), good=c.good, most=c.per_prompt, **ties
    ),
    "scored": None,
  }
  if c.select not in choices:
    raise InputError(f"make_pairs.select={c.select!r} is not one of {', '.join(choices)}")
  if c.select == "thresholds" and not c.good > c.bad:
    raise InputError(f"make_pairs.good={c.good:g} must be above make_pairs.bad={c.bad:g}")
  return choices[c.select]


def _of_pool(config, workdir: pathlib.Path, dry_run: bool, pool, select) -> None:
  """Makes the pairs of the pool alone, of responses that are short enough to be trained on."""
  if not pool:
    raise InputError("make_pairs.sample=False takes all responses from make_pairs.pool: name a file there")
  encoder = pair_tokens.Encoder(build_policy.load_tokenizer(config))
  most = config.sampling.max_response_length
  tokens = lambda row, text: encoder.response(row["prompt"], text, templates.options_of(row))
  found, long, total, made = [], 0, 0, 0
  for row, texts, scores in pool.values():
    cut = [len(tokens(row, text)) > most for text in texts]
    pairs = rows_of(row, texts, scores, cut, select)
    found, long, total, made = found + pairs, long + sum(cut), total + len(cut), made + bool(pairs)
  said = f"{long} of {total} responses to {len(pool)} prompts are over sampling.max_response_length={most}"
  if not found:
    raise InputError(f"no prompt of make_pairs.pool makes a pair; {said}: raise it, or loosen make_pairs.good and bad")
  print(f"{said} tokens, and are left out")
  if dry_run:
    print(f"{len(found)} pairs of {made} prompts")
    return
  _write(workdirs.open_workdir(workdir, config), found, len(pool) - made, select)


def _write(workdir: pathlib.Path, found: list[dict], without: int, select) -> None:
  file = workdir / (SCORED_FILE if select is None else FILE)
  workdirs.write(file, "".join(json.dumps(row) + "\n" for row in found))
  print(f"{len(found)} {'prompts' if select is None else 'pairs'} in {file}; {without} prompts made none")


def _pool(config) -> dict[tuple, tuple[dict, list[str], list[float]]]:
  """Of each task and prompt the row, and another model's texts with their scores.

  In a file of pairs a text stands once for each comparison. It is taken once, with the mean of its scores.
  """
  source, found = config.make_pairs.pool, {}
  if not source:
    return found
  bad_rows = {"on_bad_row": config.data.on_bad_row, "max_bad_share": config.data.max_bad_share}
  read = sources.load(source, needs=formats.SCORED, **bad_rows)
  if read.bad:
    print(read.line())
  once = any(isinstance(example, Preference) for example in read.examples)
  for one in scored.gather(read.examples):
    members = [(text, score) for text, score in zip(one.responses, one.scores, strict=True) if isinstance(text, str)]
    if once:
      mean = lambda text, members=members: float(np.mean([score for other, score in members if other == text]))
      members = [(text, mean(text)) for text in dict.fromkeys(text for text, _ in members)]
    found[_key(one.row)] = one.row, [text for text, _ in members], [score for _, score in members]
  return found


def _key(row) -> tuple:
  """The identity of a prompt's task."""
  return row["prompt"], columns.task(row)


def rows_of(row, texts, rewards, truncated, select) -> list[dict]:
  """One prompt's pairs in TRL's shape, or its scored responses; without samples that were cut, blank or not judged, or equal texts."""
  judged = np.isfinite(rewards)
  usable = [place for place, text in enumerate(texts) if text.strip() and not truncated[place] and judged[place]]
  kept, scores = [texts[place] for place in usable], [float(rewards[place]) for place in usable]
  prompt = row["prompt"]
  if select is None:
    return [row | {"responses": kept, "scores": scores}] if kept else []
  prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(message) for message in prompt]
  say = lambda text: [{"role": "assistant", "content": text}]
  return [
    row
    | {"prompt": prompt, "chosen": say(kept[good]), "rejected": say(kept[bad])}
    | {"score_chosen": scores[good], "score_rejected": scores[bad]}
    for good, bad in select(kept, scores)
    if kept[good] != kept[bad]
  ]


if __name__ == "__main__":
  cli.run(
    main,
    description="Makes preference pairs of a model's own scored samples: WORKDIR/pairs.jsonl, in TRL's shape.",
    example="python -m experiments.make_pairs --config=configs/open_list.py --workdir=runs/pairs",
  )
