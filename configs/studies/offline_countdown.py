"""Pairs of right and wrong answers to countdown puzzles, a small model of our own: DPO, SPL, QEMPO fixed and measured.

  python -m experiments.studies.countdown_model runs/countdown_model
  python -m experiments.frontier --config=configs/studies/offline_countdown.py --workdir=runs/offline_countdown
  python -m experiments.studies.collect offline_countdown runs/offline_countdown
  python -m experiments.studies.results

Pairs are samples of the reference, a right one preferred to a wrong one. Quality is exact, so no result depends on a
learned judge. Each method has two learning rates; the better is chosen on the validation puzzles with seed 0.
"""

from ml_collections import ConfigDict

from configs import countdown_small
from configs.frontier_open_list import sweep
from configs.studies import offline_pairs

METHODS = offline_pairs.METHODS


def get_config() -> ConfigDict:
  """Puzzles, model and evaluation of configs/countdown_small.py."""
  config = countdown_small.get_config()
  shared = config.base
  for method in config.methods:
    del config[method]
  config.methods = METHODS
  config.baseline = "dpo"
  for method in METHODS:
    of_method = config[method] = shared.copy_and_resolve_references()
    if method != "base":
      of_method.steps = 100
      of_method.compute.bucket = 32
      of_method.offline.pairs = "sampled"
      of_method.offline.pairs_per_prompt = 64
      of_method.offline.pairs_per_step = 32
      of_method.sampling.group_size = 128  # Samples a puzzle, for pairs and for measurements.

  offline_pairs.define_losses(config)
  for method in ("qempo_kl", "qempo"):
    config[method].offline.measure_every = 5
    config[method].constraints.quality.bound = 0.6
  config.qempo_kl.constraints.kl.bound = 1.5
  config.qempo_kl.constraints.kl.gain = 0.02

  config.points = ConfigDict()
  config.points.base = sweep("sampling.temperature", 1.0)
  for method in METHODS[1:]:
    config.points[method] = sweep("optimizer.learning_rate", 3e-4, 1e-4)
  return config
