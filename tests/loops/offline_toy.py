"""Bradley-Terry pairs of the enumerable toy, and its config as the offline loop expects one."""

import json

import numpy as np

from tests.loops import toy


class Recorder:
  """A display that shows nothing, and keeps what it was told."""

  def __init__(self):
    self.notes, self.steps = [], []

  def step(self, step, metrics):
    """Keeps a step's metrics."""
    self.steps.append(dict(metrics, step=step))

  def note(self, line):
    """Keeps a line."""
    self.notes.append(line)


def write_pairs(path, count, *, scale, seed=0):
  """Pairs of uniformly drawn unequal responses, labelled with probability sigmoid(scale (r_a - r_b))."""
  rng = np.random.default_rng(seed)
  rewards, responses = toy.rewards(), [[int(token) for token in ids] for ids in toy.responses()]
  first = rng.integers(len(responses), size=count)
  second = (first + rng.integers(1, len(responses), size=count)) % len(responses)
  drawn = np.stack([first, second], axis=1)
  prompts = np.arange(count) % len(toy.PROMPTS)
  gaps = scale * (rewards[prompts, drawn[:, 0]] - rewards[prompts, drawn[:, 1]])
  flip = rng.random(count) > 1 / (1 + np.exp(-gaps))
  with open(path, "w", encoding="utf-8") as file:
    for prompt, pair, flipped in zip(prompts, drawn, flip):
      chosen, rejected = pair[::-1] if flipped else pair
      row = {"prompt": toy.PROMPTS[prompt], "chosen": responses[chosen], "rejected": responses[rejected]}
      file.write(json.dumps(row) + "\n")


def config(folder, *, count, scale):
  """The toy's config with pairs; the objective is left to the caller."""
  config = toy.config(folder)
  write_pairs(folder / "pairs.jsonl", count, scale=scale)
  config.data.source = f"jsonl:{folder / 'pairs.jsonl'}"
  config.offline.loss = "qempo"
  config.offline.weights = "multipliers"
  config.offline.pairs_per_step = 16
  config.offline.measure_every = 4
  quality, kl = config.constraints.quality, config.constraints.kl
  # The preferences' rewards are `scale` times the measured ones, so that their multiplier is smaller by as much.
  quality.parametrisation, quality.start = "linear", 4.0 / scale
  quality.gain, quality.proportional_gain = 1.2 / scale, 12.0 / scale
  kl.start, kl.gain, kl.proportional_gain = 0.5, 0.02, 0.2
  return config
