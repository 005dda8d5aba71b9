"""Throughput of the input pipeline, from file to packed arrays, compared with the time of a training step.

  python -m experiments.benchmarks.data_pipeline --config=configs/offline_dpo.py
      --config.data.source=jsonl:pairs.jsonl.gz --config.offline.pairs=source
      --config.sampling.max_response_length=512 --config.data.max_prompt_length=512

Times are CPU seconds of all threads, so that other work on the machine does not count. The tokenizer is loaded, the
model is not. The input must be faster than one batch per STEP_SECONDS.
"""

import pathlib
import time

from experiments import cli
from experiments.configured import data as build_data
from experiments.configured import policy as build_policy
from qempo_jax.data import pair_tokens
from qempo_jax.data import tokenization
from qempo_jax.errors import InputError

# Seconds of one training step of the demo (online, 4 prompts of 32 samples) on two CPU cores.
STEP_SECONDS = 2.6
BATCHES = 200


def main(config, workdir: pathlib.Path | None, dry_run: bool) -> None:
  """Times reading, tokenising and packing separately, in CPU seconds of all threads."""
  del workdir, dry_run
  tokenizer = tokenization.load_tokenizer(build_policy.source(config))
  seconds = {}
  started = time.process_time()
  examples, line = build_data.examples(config)
  seconds["read"] = time.process_time() - started
  print(line)
  if examples[0].chosen is None:
    raise InputError("this benchmark needs pairs or completions: set offline.loss and offline.pairs=source")
  started = time.process_time()
  responses = 1 if examples[0].rejected is None else 2
  pairs = pair_tokens.encode_pairs(tokenizer, examples, responses=responses, **build_data.limits(config))
  seconds["tokenise"] = time.process_time() - started
  batch, size = build_data.pair_rows(config, pairs)[0], config.offline.pairs_per_step
  started = time.process_time()
  shares = [pair_tokens.padding_share(batch(step)[0]) for step in range(BATCHES)]
  packing = (time.process_time() - started) / BATCHES
  per_batch = (seconds["read"] + seconds["tokenise"]) / len(examples) * size + packing
  print(
    f"read {len(examples) / seconds['read']:,.0f} rows/s; tokenise {len(examples) / seconds['tokenise']:,.0f} rows/s"
  )
  print(f"pack {1 / packing:,.0f} batches/s of {size} pairs")
  print(f"padding {sum(shares) / BATCHES:.1%} with data.length_window={config.data.length_window}")
  print(f"read, tokenise and pack: {per_batch * 1e3:.1f} ms per batch")
  print(
    f"a step of {STEP_SECONDS} s: the input is {STEP_SECONDS / per_batch:,.0f} times as fast, packing alone"
    f" {STEP_SECONDS / packing:,.0f} times"
  )


if __name__ == "__main__":
  cli.run(
    main,
    description="Times the input: reading, tokenising, packing.",
    example="python -m experiments.benchmarks.data_pipeline --config=configs/offline_dpo.py --config.offline.pairs=source",
    needs_workdir=False,
  )
