"""Sampling speed against its floor on this machine, utilisation of slots, and agreement of sampler and scorer.

  python -m experiments.benchmarks.decoding --samples=128 --tokens=64 --output=decoding.json
  python -m experiments.benchmarks.decoding --utilisation --output=utilisation.json
  python -m experiments.benchmarks.decoding --agreement --output=agreement.json

The floor is the time of a token step's products with weights, at the sampler's shapes. Draws, attention, caches and the
prefill are not in it. Both run in turn, and the share is that of their medians.

Utilisation is the share of the slots' steps that drew a token of a sample; these counts do not depend on load. A random
decoder of one block ends with about the same probability at each token, so that lengths are geometric.

Agreement is the distance of the sampler's log-probs from those of the training forward pass, on real prompts, in nats:
the error of a rounded cache in the on-policy ratio.
"""

import argparse
import dataclasses
import json
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from qempo_jax import packing
from qempo_jax import scoring
from qempo_jax.data import tokenization
from qempo_jax.linear import linear
from qempo_jax.models import conversion
from qempo_jax.models import decoding
from qempo_jax.models import demo_model
from qempo_jax.models import parameters
from qempo_jax.models.config import ModelConfig
from qempo_jax.sampling import sampler
from qempo_jax.types import PromptBatch

TINY = ModelConfig(64, 16, 16, 1, 2, 1, 8, 100.0, 1e-5, True)
PROMPTS = (
  "Name a fruit.",
  "Write one sentence about the sea.",
  "What is 17 times 3?",
  "Name a country in Africa and its capital.",
)
STOPS = (0, 1)  # of 64 tokens: about 32 tokens a response


def floor(config: ModelConfig, params, samples: int):
  """Returns a function that computes the products of one token step of every sample."""
  decoder = jax.jit(decoding.for_decoding, static_argnums=(1, 2))(params, config, 1)
  ends_in = lambda name: -1 if name == "output" else 1  # number of input axes: all but the last, or one
  flat = lambda name, w: w.reshape(-1, w.shape[-1]) if ends_in(name) < 0 else w.reshape(w.shape[0], -1)
  blocks = [[flat(name, w) for name, w in block.items() if w.ndim > 1] for block in decoder["layers"]]
  inputs = {width: jnp.ones((samples, width)) for block in blocks for width in {w.shape[0] for w in block}}
  product = jax.jit(lambda x, w: linear(x, w, config.compute_dtype))
  head = jax.jit(lambda x, w: linear(x, w, config.compute_dtype, transpose=True))

  def run():
    for block in blocks:
      for w in block:
        last = product(inputs[w.shape[0]], w)
    jax.block_until_ready((last, head(inputs[config.hidden_size], decoder["unembedding"])))

  return run


def speed(*, prompts: int, samples: int, prompt: int, tokens: int, repeats: int, dtypes, caches) -> dict:
  """Seconds of sampling and of its floor with the demo model, for each compute dtype and cache dtype."""
  config, params = conversion.load(demo_model.demo_model_path())
  params = jax.tree.map(jnp.asarray, params)
  batch = PromptBatch(jnp.ones((prompts, prompt), jnp.int32), jnp.ones((prompts, prompt), bool))
  results = {}
  for dtype in dtypes:
    runs, compiled = {}, {}
    for cache in caches:
      variant = dataclasses.replace(config, compute_dtype=dtype, kv_cache=cache)
      settings = dict(group_size=samples // prompts, max_length=tokens, temperature=1.0, stop_tokens=())
      run = lambda variant=variant, settings=settings: jax.block_until_ready(
        sampler.sample_groups(params, variant, batch, jax.random.key(0), **settings)
      )
      compiled[cache] = _seconds(run)
      runs[cache] = run
    products = floor(dataclasses.replace(config, compute_dtype=dtype), params, samples)
    products()
    times = {name: [] for name in (*runs, "floor of one step")}
    for _ in range(repeats):
      for name, run in runs.items():
        times["floor of one step"].append(min(_seconds(products) for _ in range(3)))
        times[name].append(_seconds(run))
    lowest = statistics.median(times["floor of one step"]) * tokens
    for cache in caches:
      median = statistics.median(times[cache])
      results[f"{dtype}, cache {cache}"] = {
        "seconds": times[cache],
        "first_call_seconds": compiled[cache],
        "tokens_per_second": samples * tokens / median,
        "floor_seconds": lowest,
        "share_of_floor": lowest / median,
      }
      print(dtype, cache, {k: v for k, v in results[f"{dtype}, cache {cache}"].items() if k != "seconds"}, flush=True)
  return results


def utilisation(*, prompts: int, group: int, tokens: int) -> dict:
  """Utilisation for several numbers of slots and halvings, on the same samples."""
  params = parameters.init(jax.random.key(0), TINY, stddev=0.05)
  batch = PromptBatch(jnp.full((prompts, 4), 7, jnp.int32), jnp.ones((prompts, 4), bool))
  by_setting, expected = {}, None
  total = prompts * group
  for slots in (total, total // 4, total // 8, total // 16):
    for halvings in (0, 3):
      rollout = sampler.sample_groups(
        params,
        TINY,
        batch,
        jax.random.key(0),
        group_size=group,
        max_length=tokens,
        temperature=1.0,
        stop_tokens=STOPS,
        slots=slots,
        halvings=halvings,
      )
      expected = np.asarray(rollout.tokens) if expected is None else expected
      np.testing.assert_array_equal(rollout.tokens, expected)
      lengths = np.asarray(rollout.mask).sum(-1)
      by_setting[f"{slots} slots, {halvings} halvings"] = float(rollout.utilisation)
  quantiles = {f"{q:.0%}": float(np.quantile(lengths, q)) for q in (0.1, 0.5, 0.9)}
  return {
    "samples": total,
    "lengths": quantiles | {"mean": float(lengths.mean()), "longest": int(lengths.max())},
    "utilisation": by_setting,
  }


def agreement(*, samples: int, tokens: int, dtypes, caches) -> dict:
  """|sampler - scorer| on the demo model's samples, for each compute dtype and cache dtype."""
  path = demo_model.demo_model_path()
  config, params = conversion.load(path)
  params, tokenizer = jax.tree.map(jnp.asarray, params), tokenization.load_tokenizer(path)
  prompts = [tokenization.encode_chat(tokenizer, text) for text in PROMPTS]
  width = max(map(len, prompts))
  batch = PromptBatch(np.zeros((len(prompts), width), np.int32), np.zeros((len(prompts), width), bool))
  for row, prompt in enumerate(prompts):
    batch.tokens[row, : len(prompt)], batch.mask[row, : len(prompt)] = prompt, True
  group, errors = samples // len(prompts), {}
  stop_tokens = tuple(tokenization.stop_token_ids(tokenizer))
  for dtype in dtypes:
    for cache in caches:
      variant = dataclasses.replace(config, compute_dtype=dtype, kv_cache=cache)
      settings = {"group_size": group, "max_length": tokens, "temperature": 1.0}
      rollout = jax.device_get(
        sampler.sample_groups(params, variant, batch, jax.random.key(0), stop_tokens=stop_tokens, **settings)
      )
      responses = [[t[m] for t, m in zip(*of_prompt)] for of_prompt in zip(rollout.tokens, rollout.mask)]
      packed = packing.pack_groups(prompts, responses, bucket=64)
      score = jax.jit(scoring.score_groups, static_argnames=("config", "group_size", "max_length", "chunk_size"))
      stats = score(params, variant, packed, chunk_size=256, **settings)
      ratio = (np.asarray(stats.log_prob) - rollout.log_probs) * rollout.mask
      entropy = (np.asarray(stats.entropy) - rollout.entropies)[rollout.mask]
      errors[f"{dtype}, cache {cache}"] = {
        "tokens": int(rollout.mask.sum()),
        "token_mean": float(np.abs(ratio[rollout.mask]).mean()),
        "token_largest": float(np.abs(ratio).max()),
        "response_largest": float(np.abs(ratio.sum(-1)).max()),
        "response_bias": float(ratio.sum(-1).mean()),
        "entropy_largest": float(np.abs(entropy).max()),
      }
      print(dtype, cache, errors[f"{dtype}, cache {cache}"], flush=True)
  return errors


def _seconds(run) -> float:
  started = time.perf_counter()
  run()
  return time.perf_counter() - started


def main() -> None:
  """Measures, prints and writes the results."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--utilisation", action="store_true")
  parser.add_argument("--agreement", action="store_true")
  for name, default in {"prompts": 4, "samples": 128, "prompt": 48, "tokens": 64, "repeats": 3}.items():
    parser.add_argument(f"--{name}", type=int, default=default)
  parser.add_argument("--dtypes", nargs="+", default=("float32", "bfloat16"))
  parser.add_argument("--caches", nargs="+", default=("float32",))
  parser.add_argument("--output")
  args = parser.parse_args()
  if args.utilisation:
    result = utilisation(prompts=64, group=16, tokens=160)
  elif args.agreement:
    result = agreement(samples=args.samples, tokens=args.tokens, dtypes=args.dtypes, caches=args.caches)
  else:
    names = ("prompts", "samples", "prompt", "tokens", "repeats", "dtypes", "caches")
    result = speed(**{name: getattr(args, name) for name in names})
  result = {"setting": vars(args), "load": os.getloadavg(), "result": result}
  print(json.dumps(result, indent=2))
  if args.output:
    with open(args.output, "w", encoding="utf-8") as file:
      json.dump(result, file, indent=2)


if __name__ == "__main__":
  main()
