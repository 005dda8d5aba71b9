"""Countdown with a small model: puzzles with all their right strings, and the model's sampling, scoring and exact evaluation.

Right strings are enumerated and scored, so evaluation has no sampling noise.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from qempo_jax import token_stats
from qempo_jax.data import tokenization
from qempo_jax.evaluation import exact_answers
from qempo_jax.models import conversion
from qempo_jax.models import decoder_block
from qempo_jax.models import decoding
from qempo_jax.models import kv_cache
from qempo_jax.models import layers
from qempo_jax.models import positions
from qempo_jax.models import transformer
from qempo_jax.rewards import countdown
from qempo_jax.train import optimizers

PROMPTS, LENGTH = 5, 8  # puzzles an update; tokens of a response
SPLITS = ("train", "validation", "heldout")


class Puzzles(NamedTuple):
  """All puzzles of all splits.

  Attributes:
    prompts: [N, L] token ids, padded on the left.
    mask: [N, L].
    codes: [N, M] sorted codes of the right strings, padded with the largest integer.
    strings: [S, T] tokens of every right string, the ending token included.
    lengths: [S].
    puzzle: [S] whose answer it is.
    solution: [S] number of its canonical form.
    splits: puzzles of each split.
  """

  prompts: np.ndarray
  mask: np.ndarray
  codes: np.ndarray
  strings: np.ndarray
  lengths: np.ndarray
  puzzle: np.ndarray
  solution: np.ndarray
  splits: dict[str, list[int]]


def make_puzzles(tokenizer, stop: int) -> Puzzles:
  """Enumerates every right string of every puzzle; the model's vocabulary has no blank, so no string has one."""
  splits, targets = {}, []
  for split in SPLITS:
    splits[split] = list(range(len(targets), len(targets) + len(countdown.targets(split))))
    targets += countdown.targets(split)
  prompts = [tokenization.encode_chat(tokenizer, countdown.prompt(target)) for target in targets]
  width = max(map(len, prompts))
  padded = np.array([[0] * (width - len(ids)) + ids for ids in prompts], np.int32)
  mask = np.arange(width) >= np.array([width - len(ids) for ids in prompts])[:, None]
  rows, solutions = [], {}
  for index, target in enumerate(targets):
    for text, solution in countdown.written_forms(target).items():
      if " " not in text:
        number = solutions.setdefault((target, solution), len(solutions))
        rows.append(([*tokenizer.encode(text, add_special_tokens=False), stop], index, number))
  strings = np.zeros((len(rows), LENGTH), np.int32)
  for row, (ids, *_) in enumerate(rows):
    strings[row, : len(ids)] = ids
  lengths, puzzle, solution = (
    np.array([len(r[0]) for r in rows]),
    np.array([r[1] for r in rows]),
    np.array([r[2] for r in rows]),
  )
  coded = np.asarray(code(jnp.asarray(strings), jnp.arange(LENGTH) < lengths[:, None]))
  codes = np.full((len(targets), max(np.bincount(puzzle))), np.iinfo(np.int32).max, np.int32)
  for number in range(len(targets)):
    own = np.sort(coded[puzzle == number])
    assert len(set(own)) == len(own)
    codes[number, : len(own)] = own
  return Puzzles(padded, mask, codes, strings, lengths, puzzle, solution, splits)


def code(tokens, mask):
  """Responses of at most 6 tokens as integers, base 16 from 1; longer ones, which are never right, as -1."""
  digits = jnp.where(mask, tokens + 1, 0)[..., :6]
  value = jnp.sum(digits * 16 ** jnp.arange(6), axis=-1)
  return jnp.where(jnp.any(mask[..., 6:], axis=-1), -1, value)


def draw(params, config, prompts, prompt_mask, temperature, noise):
  """Tokens [P, G, T] of samples; a token is the argmax of logits / temperature + noise.

  Args:
    params: of a decoder.
    config: its shape.
    prompts: [P, L] padded on the left.
    prompt_mask: [P, L].
    temperature: of the draws.
    noise: [T, P, G, V] Gumbel noise.
  """
  hidden, stored = decoding.prefill(params, config, prompts, prompt_mask)
  count, rows, group, _ = noise.shape
  cache = kv_cache.KVCache.create(stored, prompt_mask, config, group_size=group, max_length=count)
  decoder = decoding.for_decoding(params, config, prompts.shape[1] + count)
  chosen = lambda hidden, noise: jnp.argmax(
    transformer.logits(hidden, decoder["unembedding"], config) / temperature + noise, axis=-1
  )

  def turn(carry, noise):
    token = chosen(carry[0], noise)
    return decoding.decode(decoder, config, token, carry[1]), token

  hidden = jnp.broadcast_to(hidden[:, None], (rows, group, hidden.shape[-1]))
  (hidden, _), tokens = jax.lax.scan(turn, (hidden, cache), noise[:-1])
  return jnp.moveaxis(jnp.concatenate([tokens, chosen(hidden, noise[-1])[None]]), 0, -1)


def score(params, config, prompts, prompt_mask, owner, tokens, temperature=1.0):
  """TokenStats [R, T] of responses, each prompt being computed once; blocks are unrolled, which is faster here than a scan.

  Args:
    params: of a decoder.
    config: its shape.
    prompts: [P, L] padded on the left.
    prompt_mask: [P, L].
    owner: [R] the prompt of each response.
    tokens: [R, T]; what stands behind the ending token does not matter.
    temperature: divides the logits.
  """
  places = jnp.cumsum(prompt_mask, axis=1) - 1
  own_places = places[:, -1][owner][:, None] + 1 + jnp.arange(tokens.shape[1] - 1)
  rotations = [
    positions.block_rotation(positions.rope_rotations(config, where), positions.Block())
    for where in (places, own_places)
  ]
  causal = transformer.causal_mask(places, prompt_mask)
  own = jnp.broadcast_to(jnp.tri(own_places.shape[1], dtype=bool), (len(owner), *(own_places.shape[1],) * 2))
  shared = jnp.broadcast_to(prompt_mask[owner][:, None], (*own_places.shape, prompts.shape[1]))
  sees = jnp.concatenate([shared, own], axis=-1)
  behind = lambda old, new: jnp.concatenate([old[owner], new], axis=1)
  prompt, response = params["embedding"][prompts], params["embedding"][tokens[:, :-1]]
  for index in range(config.num_layers):
    block = functools.partial(decoder_block.run, jax.tree.map(lambda leaf, index=index: leaf[index], params["layers"]))
    prompt, past, _ = block(
      prompt, rotations[0], config, lambda q, k, v, sinks: (layers.attention(q, k, v, causal, config, sinks), (k, v))
    )
    response, *_ = block(
      response, rotations[1], config,
      lambda q, k, v, sinks, past=past: (
        layers.attention(q, behind(past[0], k), behind(past[1], v), sees, config, sinks), None
      ),
    )  # fmt: skip
  hidden = jnp.concatenate([prompt[:, -1][owner][:, None], response], axis=1)
  hidden = layers.rms_norm(hidden, params["final_norm"], config.norm_epsilon, config.norm_offset)
  logits = transformer.logits(hidden, transformer.unembedding(params), config)
  return token_stats.from_logits(logits / temperature, tokens)


def evaluator(config, puzzles: Puzzles):
  """params -> exact figures a puzzle: P(right), expected different right answers of 64, effective right answers."""
  scored = jax.jit(lambda params, temperature, *rows: score(params, config, *rows, temperature).log_prob)
  width = max(puzzles.lengths)
  rows = tuple(map(jnp.asarray, (puzzles.prompts, puzzles.mask, puzzles.puzzle, puzzles.strings[:, :width])))
  mask = np.arange(width) < puzzles.lengths[:, None]
  of_puzzle = [np.flatnonzero(puzzles.puzzle == number) for number in range(len(puzzles.prompts))]

  def evaluate(params, temperature=1.0) -> dict:
    log_probs = np.sum(np.asarray(scored(params, temperature, *rows), np.float64), axis=-1, where=mask)
    found = [exact_answers.figures(log_probs[own], puzzles.solution[own], draws=(64,)) for own in of_puzzle]
    figures = {
      "right": [of.acceptable for of in found],
      "distinct": [of.distinct[0] for of in found],
      "effective": [of.effective_answers for of in found],
    }
    return {
      name: {split: [float(f"{values[i]:.4g}") for i in own] for split, own in puzzles.splits.items()}
      for name, values in figures.items()
    }

  return evaluate


def load(folder: str):
  """(config of the reference in a folder, its parameters on one device, its stop token, the puzzles as token ids)."""
  tokenizer = tokenization.load_tokenizer(folder)
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor"))
  config, reference = conversion.load(folder, mesh=mesh, dtype=jnp.dtype("float32"))
  stop = tokenization.stop_token_ids(tokenizer)[0]
  return config, jax.device_put(reference, jax.devices()[0]), stop, make_puzzles(tokenizer, stop)


def optimizer(rate, steps: int) -> optax.GradientTransformation:
  """AdamW whose rate falls linearly to a tenth; the rate may be traced."""
  return optimizers.adamw(
    learning_rate=rate, warmup_steps=2, total_steps=steps, final_fraction=0.1, b1=0.9, b2=0.95, weight_decay=0.0,
    max_grad_norm=1.0,
  )  # fmt: skip
