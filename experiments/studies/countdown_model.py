"""A small language model that solves some countdown puzzles: the reference policy of configs/countdown_small.py.

  python -m experiments.studies.countdown_model runs/countdown_model

A decoder of three blocks and width 96 over 15 characters, trained from scratch on random calculations after "NUMBER=".
40 % of these calculations have that value, 50 % have any value, and 10 % are strings of random characters. Thus the
model has seen right and wrong answers, like one trained on the web. Signs and digits are uneven (a digit's weight is
its inverse), so that the reference prefers some answers. Seed 0; 184 CPU-seconds. It is written as a folder that any
model source of the configs reads.
"""

import functools
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tokenizers
import transformers

from qempo_jax import packing
from qempo_jax import scoring
from qempo_jax.models import export
from qempo_jax.models import parameters
from qempo_jax.models.config import ModelConfig
from qempo_jax.rewards import countdown

TARGETS = tuple(range(2, 29))
VOCABULARY = {"<eos>": 0, **{char: index for index, char in enumerate("0123456789+-*=", start=1)}}
CONFIG = ModelConfig(
    vocab_size=len(VOCABULARY), hidden_size=96, intermediate_size=256, num_layers=3, num_heads=4, num_kv_heads=4, head_dim=24,
    rope_theta=1000.0, norm_epsilon=1e-5, tie_embeddings=True,
)  # fmt: skip
STEPS, PER_TARGET, LEARNING_RATE, MAX_LENGTH = 1500, 8, 2e-3, 8
RIGHT_SHARE, RANDOM_SHARE = 0.4, 0.1
SIGNS, SIGN_WEIGHTS = "+-*", (0.5, 0.3, 0.2)


def tokenizer() -> transformers.PreTrainedTokenizerFast:
  """Builds a tokenizer with one token per character; a conversation is its last message and "="."""
  model = tokenizers.Tokenizer(tokenizers.models.WordLevel(VOCABULARY, unk_token="<eos>"))
  model.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
  model.decoder = tokenizers.decoders.Fuse()
  wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<eos>", pad_token="<eos>")
  wrapped.chat_template = "{{ messages[-1].content }}="
  return wrapped


def draw(target: int, rng: np.random.Generator, by_value: dict[int, list[str]]) -> str:
  """Draws the text after "target=" in the training data."""
  kind = rng.random()
  if kind < RANDOM_SHARE:
    return "".join(rng.choice(list("0123456789+-*"), size=rng.integers(1, MAX_LENGTH)))
  if kind < RANDOM_SHARE + RIGHT_SHARE:
    return by_value[target][rng.integers(len(by_value[target]))]
  return calculation(rng)


def calculation(rng: np.random.Generator) -> str:
  """Draws a random calculation of two or three digits."""
  weights = 1 / np.arange(1, 10)
  digits = rng.choice(list("123456789"), size=rng.choice((2, 3)), p=weights / weights.sum())
  signs = rng.choice(list(SIGNS), size=len(digits) - 1, p=SIGN_WEIGHTS)
  return digits[0] + "".join(sign + digit for sign, digit in zip(signs, digits[1:]))


def train(seed: int = 0):
  """Trains the model and returns its parameters."""
  rng = np.random.default_rng(seed)
  by_value = {target: [] for target in TARGETS}
  for text in (calculation(rng) for _ in range(60_000)):
    if (value := countdown.value(text)) in by_value:
      by_value[value].append(text)
  encode = lambda text: [VOCABULARY[char] for char in text]
  prompts = [encode(f"{target}=") for target in TARGETS]
  params = parameters.init(jax.random.key(seed), CONFIG, stddev=0.05)
  optimizer = optax.adamw(optax.cosine_decay_schedule(LEARNING_RATE, STEPS), weight_decay=0.01)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, state, packed):
    def loss_fn(params):
      stats = scoring.score_groups(
        params, CONFIG, packed, group_size=PER_TARGET, max_length=MAX_LENGTH, temperature=1.0, chunk_size=4096
      )
      return -jnp.sum(stats.log_prob) / (len(TARGETS) * PER_TARGET)

    loss, gradient = jax.value_and_grad(loss_fn)(params)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, loss

  state = optimizer.init(params)
  for index in range(STEPS):
    groups = [[[*encode(draw(t, rng, by_value)), 0] for _ in range(PER_TARGET)] for t in TARGETS]
    params, state, loss = step(params, state, packing.pack_groups(prompts, groups, bucket=8))
    if index % 250 == 249:
      print(f"step {index + 1}: {float(loss):.3f} nats a response", flush=True)
  return params


def main(folder: str) -> None:
  """Trains the model and writes the folder."""
  started = time.process_time()
  export.export_model(pathlib.Path(folder), train(), CONFIG, tokenizer=tokenizer())
  print(f"{folder}: {time.process_time() - started:.0f} CPU-seconds")


if __name__ == "__main__":
  main(*sys.argv[1:])
