"""A tiny transformer whose every response can be enumerated, wired as the online loop expects a model."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from configs import base
from experiments import build
from experiments import loop
from experiments import plan
from qempo_jax import packing
from qempo_jax import sharding
from qempo_jax.models import parameters
from qempo_jax.models.config import ModelConfig
from qempo_jax.testing.sequence_space import sequence_space
from tests import scored

EOS = 0
SPACE = sequence_space(6, 4)
PROMPTS = ("1 2", "3 4 5")
MODEL = ModelConfig(
  vocab_size=6,
  hidden_size=32,
  intermediate_size=64,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  rope_theta=100.0,
  norm_epsilon=1e-5,
  tie_embeddings=False,
)
# r(y) in (0, 1): every token is worth something by its place, and the prompt shifts the weights.
_WEIGHTS = np.random.default_rng(7).normal(scale=0.7, size=(len(PROMPTS), 4, 6))


class ToyTokenizer:
  """Token ids as text: "3 1" for the response 3 1 0."""

  chat_template = None
  eos_token_id = EOS

  def get_vocab(self):
    return {str(token): token for token in range(MODEL.vocab_size)}

  def encode(self, text, add_special_tokens=True):
    return [int(token) for token in text.split()]

  def decode(self, ids, skip_special_tokens=False):
    return " ".join(str(int(token)) for token in ids)


def value(prompt: str, response) -> float:
  """The reward of one response."""
  weights = _WEIGHTS[PROMPTS.index(prompt)]
  return float(1 / (1 + np.exp(-sum(weights[place, token] for place, token in enumerate(response)))))


def reward(prompts, completions, **columns):
  """The same in TRL's shape, of texts without the ending token."""
  return [value(p, tokens_of(c)) for p, c in zip(prompts, completions)]


def tokens_of(completion: str) -> list[int]:
  """The response that a text stands for: one that is shorter than it may be has ended."""
  tokens = [int(token) for token in completion.split()]
  return tokens if len(tokens) == SPACE.max_length or EOS in tokens else [*tokens, EOS]


def policy() -> plan.Policy:
  """The reference: a random tiny transformer, far from uniform, on one device."""
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.AXES)
  params = parameters.init(jax.random.key(3), MODEL, stddev=0.3)
  params = jax.device_put(params, sharding.tree_shardings(params, mesh, sharding.PARAM_RULES))
  return plan.Policy(MODEL, params, ToyTokenizer(), (EOS,), mesh)


def raw(state):
  """The state on the host, its key as numbers."""
  return jax.device_get(state.replace(rng=jax.random.key_data(state.rng)))


def interrupt(monkeypatch, owner, name, *, at):
  """Lets a method's call number `at`, from 1, raise KeyboardInterrupt."""
  calls, method = [], getattr(owner, name)

  def call(self, *args):
    calls.append(1)
    if len(calls) == at:
      raise KeyboardInterrupt
    return method(self, *args)

  monkeypatch.setattr(owner, name, call)


class Silent:
  """A display that shows nothing."""

  def step(self, step, metrics):
    """Shows nothing."""

  def note(self, line):
    """Shows nothing."""


def train(config, folder, of_policy=None, display=None):
  """The last state of a run of the toy's policy, or another."""
  run = build.run(config, of_policy or policy(), check=False)
  return loop.train(run, folder, display or Silent())


def config(folder):
  """The loop's config for the toy; objective and duals are left to the caller."""
  path = folder / "prompts.jsonl"
  rows = [{"prompt": prompt} for prompt in PROMPTS * 8]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
  config = base.get_config()
  config.data.source = f"jsonl:{path}"
  config.data.prompts_per_step = len(rows)
  config.reward.function, config.reward.max = "tests.loops.toy.reward", 1.0
  config.sampling.max_response_length = SPACE.max_length
  config.sampling.group_size = 32
  config.compute.bucket = 16
  config.checkpoint.every = -1
  return config


def small(config):
  """Few samples a step, and every batch equally wide, so that one program serves all steps of all runs."""
  config.sampling.group_size = config.data.prompts_per_step = 4
  config.compute.bucket = 32
  return config


def responses():
  """Every response there is, as token lists."""
  return [tokens[mask] for tokens, mask in zip(SPACE.tokens, SPACE.mask)]


def rewards() -> np.ndarray:
  """Exact rewards of all responses to every prompt: [P, N]."""
  return np.array([[value(prompt, response) for response in responses()] for prompt in PROMPTS])


def log_probs(params) -> np.ndarray:
  """Exact log-probabilities of all responses to every prompt: [P, N]."""
  prompts = [ToyTokenizer().encode(prompt) for prompt in PROMPTS]
  packed = packing.pack_groups(prompts, [responses()] * len(prompts), bucket=128)
  stats = scored.score_groups(
    params,
    MODEL,
    packed,
    group_size=SPACE.num_sequences,
    max_length=SPACE.max_length,
    temperature=1.0,
    chunk_size=1024,
  )
  return np.asarray(jnp.sum(stats.log_prob, axis=-1), np.float64)
