"""Countdown puzzles with SmolLM2-135M, a reasoning task with many right answers: seven online methods, pass@k up to 64.

  python -m experiments.frontier --config=configs/countdown.py --workdir=runs/countdown
  python -m experiments.studies.collect countdown runs/countdown      # finished runs so far, into docs/results

Resumable: finished runs (those with a result.json) are not repeated. Each run has 40 steps of 4 puzzles x 32 samples,
without replay, so that every method sees equally many rewards and responses. Each method has two learning rates; the
better is chosen on the validation puzzles with seed 0. What was run: experiments/RESULTS.md.
"""

from ml_collections import ConfigDict

from configs import frontier_open_list
from configs import online_qempo_c
from configs.frontier_open_list import sweep

METHODS = ("base", "grpo", "qempo_c", "qempo_kl", "qempo", "mara", "grpo_bonus", "ucpo")


def get_config() -> ConfigDict:
  """Methods of configs/frontier_open_list.py on other prompts, without replay; the floor is 0.4."""
  config = frontier_open_list.get_config()
  config.seeds = (0, 1, 2)
  config.levels = (0.2, 0.4, 0.6)
  config.diversity = ("distinct@64", "entropy")
  config.methods = METHODS
  config.qempo_c = online_qempo_c.get_config()
  for method in METHODS:
    of_method = config[method]
    of_method.data.source = "countdown"
    of_method.data.max_prompt_length = 128
    of_method.reward.function = "countdown"
    of_method.reward.max = 1.0
    of_method.sampling.group_size = 32
    of_method.sampling.max_response_length = 10
    of_method.replay.size = 0
    of_method.evaluation.splits = ("validation", "heldout")
    of_method.evaluation.samples_per_prompt = 64
    of_method.evaluation.prompts_per_batch = 4
    of_method.optimizer.warmup_steps = 2
    of_method.compute.bucket = 128
    of_method.checkpoint.every = -1
  config.grpo_bonus.method = "grpo(beta=0.04, token_entropy_weight=0.01)"
  config.ucpo.method = "ucpo(tau=0.5)"
  for method in ("qempo_c", "qempo_kl", "qempo"):
    config[method].constraints.quality.bound = 0.4
    config[method].constraints.quality.margin = 0.0
  config.qempo_c.constraints.quality.start = 8.0  # From 2, a run ended at reward .06, not .32: RESULTS.md.
  for method in ("qempo_kl", "qempo"):
    config[method].constraints.quality.start = 25.0
  config.points = ConfigDict()
  config.points.base = sweep("sampling.temperature", 1.0)
  for method in METHODS[1:]:
    config.points[method] = sweep("optimizer.learning_rate", 4e-5, 2e-5)
  return config
