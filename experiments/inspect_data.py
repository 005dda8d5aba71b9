"""Shows a config's training data, token by token: `python -m experiments.inspect_data --config=configs/offline_dpo.py`.

... --config.data.source=jsonl:pairs.jsonl --config.offline.pairs=source --config.inspection.examples=1
"""

import pathlib

from experiments import build
from experiments import cli
from experiments.configured import data as build_data
from experiments.configured import policy as build_policy
from qempo_jax.data import inspection
from qempo_jax.data import pair_tokens


def main(config, workdir: pathlib.Path | None, dry_run: bool) -> None:
  """Prints some examples, then a summary over all; loads the tokenizer, not the model."""
  build.check_one_method(config)
  del workdir
  tokenizer = build_policy.load_tokenizer(config)
  examples, line = build_data.examples(config, tokenizer)
  limits = build_data.limits(config) | {"forbidden": build_policy.forbidden(config, tokenizer)}
  print(line)
  for place in range(0 if dry_run else min(config.inspection.examples, len(examples))):
    _show(tokenizer, examples[place], place, limits)
  print("\nOver the data set:")
  for line in inspection.summarise(tokenizer, examples, **limits).lines():
    print(f"  {line}")
  if (share := padding(config, tokenizer, examples, limits)) is not None:
    print(f"  padding {share:.1%} of the places of a batch, over the first epoch")


def padding(config, tokenizer, examples, limits) -> float | None:
  """The share of padding in the packed batches of the first epoch; None without responses to pack."""
  if examples[0].chosen is None:
    return None
  responses = 1 if examples[0].rejected is None else 2
  pairs = pair_tokens.encode_pairs(tokenizer, examples, responses=responses, **limits)
  rows, batches = build_data.pair_rows(config, pairs)
  empty = places = 0
  for step in range(max(batches, 1)):
    segments = rows(step)[0].segments
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
  if inspection.summarise(tokenizer, [example], **limits).unrendered:
    print("  NOTE: the chat template renders the whole conversation otherwise than this prompt and response")


if __name__ == "__main__":
  cli.run(
    main,
    description="Prints what a config trains on: tokens, template, loss mask, and what is odd about the data set.",
    example="python -m experiments.inspect_data --config=configs/offline_dpo.py --config.offline.pairs=source",
    needs_workdir=False,
  )
