"""Shows what a config trains on, token by token: `python -m experiments.inspect_data --config=configs/offline_dpo.py`.

... --config.data.source=jsonl:pairs.jsonl --config.offline.pairs=source --config.inspection.examples=1
"""

import pathlib

from experiments import builders
from experiments import cli
from experiments import packed_pairs
from qempo_jax import offline_losses
from qempo_jax.data import formats
from qempo_jax.data import inspection
from qempo_jax.data import pair_tokens
from qempo_jax.data import preferences
from qempo_jax.data import sources
from qempo_jax.data import special_tokens
from qempo_jax.data import tokenization
from qempo_jax.data.examples import Preference
from qempo_jax.models import demo_model


def main(config, workdir: pathlib.Path | None, dry_run: bool) -> None:
  """Prints some examples, then a summary over all; loads the tokenizer, not the model."""
  builders.check_one_method(config)
  del workdir
  source = str(demo_model.demo_model_path()) if config.model.source == "demo" else config.model.source
  tokenizer = tokenization.load_tokenizer(source)
  examples, line = load(config, tokenizer)
  limits = packed_pairs.limits(config)
  limits["forbidden"] = special_tokens.forbidden_token_ids(tokenizer, allowed=config.sampling.allowed_tokens)
  print(f"{config.data.source}: {line}")
  for place in range(0 if dry_run else min(config.inspection.examples, len(examples))):
    _show(tokenizer, examples[place], place, limits)
  print("\nOver the data set:")
  for line in inspection.summarise(tokenizer, examples, **limits).lines():
    print(f"  {line}")
  if (share := padding(config, tokenizer, examples, limits)) is not None:
    print(f"  padding {share:.1%} of the places of a batch, over the first epoch")


def load(config, tokenizer=None) -> tuple[list[Preference], str]:
  """The examples that a run of this config reads, and a line about them; a template's refusals are bad rows."""
  loss = config.offline.loss
  if config.data.source in ("open_list", "countdown"):
    rows = builders.training_rows(config)
    if config.data.source == "open_list" and loss and config.offline.pairs == "source":
      made = preferences.open_list_preferences(rows, per_prompt=config.offline.pairs_per_prompt, seed=config.seed)
      return made, f"{len(made):,} pairs of {len(rows):,} prompts"
    return [Preference(row, None, None) for row in rows], f"{len(rows):,} prompts"
  needs = formats.PROMPT
  if loss and config.offline.pairs == "source":
    needs = formats.PAIR if offline_losses.LOSSES[loss].responses > 1 else formats.COMPLETION
  loaded = sources.load(
    config.data.source,
    needs=needs,
    on_bad_row=config.data.on_bad_row,
    max_bad_share=config.data.max_bad_share,
    tokenizer=tokenizer,
  )
  return loaded.examples, loaded.line()


def padding(config, tokenizer, examples, limits) -> float | None:
  """The share of padding in the packed batches of the first epoch; None where there are no responses to pack."""
  if examples[0].chosen is None:
    return None
  responses = 1 if examples[0].rejected is None else 2
  pairs = pair_tokens.encode_pairs(tokenizer, examples, responses=responses, **limits)
  packed = packed_pairs.PackedPairs(config, pairs)
  empty = places = 0
  for step in range(max(len(pairs.rows) // config.offline.pairs_per_step, 1)):
    segments = packed(step)[0].segments
    empty, places = empty + int((segments < 0).sum()), places + segments.size
  return empty / places


def _show(tokenizer, example, place, limits) -> None:
  print(f"\nExample {place + 1}")
  tokens = inspection.explain(tokenizer, example)
  for name, side in tokens.items():
    print(f"  {name}: {len(side)} tokens")
    for token in side:
      print(f"    {token.id:>7}  {'loss' if token.trained else '   .'}  {token.part:<9}  {token.piece}")
  for fault in inspection.faults(tokens, **limits):
    print(f"  NOTE: {fault}")


if __name__ == "__main__":
  cli.run(
    main,
    description="Prints what a config trains on: tokens, template, loss mask, and what is odd about the data set.",
    example="python -m experiments.inspect_data --config=configs/offline_dpo.py --config.offline.pairs=source",
    needs_workdir=False,
  )
