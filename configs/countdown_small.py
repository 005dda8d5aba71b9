"""The countdown study with a small model of our own: half a minute a run; results in experiments/RESULTS.md.

  python -m experiments.studies.countdown_model runs/countdown_model
  python -m experiments.frontier --config=configs/countdown_small.py --workdir=runs/countdown_small
  python -m experiments.studies.collect countdown_small runs/countdown_small
  python -m experiments.studies.results

Puzzles, methods and the choice of learning rates are those of configs/countdown.py. Floor, budget and gain were set
after single runs of GRPO and QEMPO with seed 0. experiments/RESULTS.md also shows a floor of 0.4 with a gain of 0.1.
"""

from ml_collections import ConfigDict

from configs import countdown
from configs.frontier_open_list import sweep


def get_config() -> ConfigDict:
  """Steps, learning rates and gains for the small model."""
  config = countdown.get_config()
  for method in config.methods:
    of_method = config[method]
    of_method.model.source = "runs/countdown_model"
    of_method.steps = 150 if of_method.steps else 0
    of_method.data.prompts_per_step = 5
    of_method.evaluation.splits = ("train", "validation", "heldout")
    of_method.evaluation.prompts_per_batch = 11
    of_method.evaluation.exact = True
    of_method.sampling.max_response_length = 8
    of_method.compute.dtype = "float32"
    of_method.compute.remat = "none"
  for method in ("qempo_kl", "qempo"):
    config[method].constraints.quality.bound = 0.85
    config[method].constraints.quality.gain = 0.03
  config.qempo_kl.constraints.kl.bound = 2.0
  for method in config.methods[1:]:
    config.points[method] = sweep("optimizer.learning_rate", 3e-4, 1e-4)
  return config
