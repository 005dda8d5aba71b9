"""The sweep of all methods on a tiny transformer with enumerated responses, with the exact optima: three seeds.

  python -m experiments.frontier --config=configs/frontier_toy.py --workdir=runs/frontier_toy

About 7 CPU-minutes (394 CPU-seconds measured); results in experiments/RESULTS.md.
"""

from ml_collections import ConfigDict

from configs import frontier_open_list
from configs.frontier_open_list import methods
from configs.frontier_open_list import spl_grid
from configs.frontier_open_list import sweep

TEMPERATURE = "sampling.temperature"


def get_config() -> ConfigDict:
  """Methods of configs/frontier_open_list.py with the toy's own steps and gains, without replay."""
  config = frontier_open_list.get_config()
  config.runner = "enumerable"
  config.diversity = ("entropy", "effective_answers")
  config.levels = (0.5, 0.6, 0.7, 0.8, 0.9)
  for method in config.methods:
    of_method = config[method]
    of_method.steps = 0 if method == "base" else 600
    of_method.sampling.group_size = 32
    of_method.sampling.max_response_length = config.enumerable.max_length
    of_method.replay.size = 0
    of_method.constraints.quality.margin = 0.0
    of_method.optimizer.learning_rate = 4e-3
    of_method.optimizer.final_fraction = 0.05
    of_method.constraints.quality.parametrisation = "linear"
    of_method.constraints.quality.gain = 0.3
    of_method.constraints.quality.proportional_gain = 5.0
    of_method.constraints.kl.gain = 0.02
    of_method.constraints.kl.proportional_gain = 0.2
  for method in ("qempo", "qempo_kl"):
    config[method].constraints.quality.start = 4.0
  config.qempo_kl.constraints.kl.start = 0.5

  points = config.points
  points.base = sweep(TEMPERATURE, 0.3, 0.5, 0.7, 1.0, 1.5)
  betas = (1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125)
  points.grpo = methods("grpo", beta=betas)
  points.grpo_bonus = methods("grpo", beta=(0.25, 0.0625), token_entropy_weight=(0.03, 0.1, 0.3, 1.0))
  points.spl = spl_grid((0.05, 0.1, 0.2, 0.4), (0.0, 0.25, 0.5, 0.75))
  points.mara = methods("mara", beta=betas)
  points.ucpo = methods("ucpo", tau=(0.2, 0.5, 1.0), beta=(0.25, 0.0625))
  points.setpo = methods("setpo", weight=(0.3, 1.0, 3.0), beta=(0.25, 0.0625))
  floors = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
  points.qempo = sweep("constraints.quality.bound", *floors)
  # Budgets in nats: halfway between the smallest KL at which the floor can be met and that of QEMPO's optimum.
  budgets = (1.07, 1.26, 1.53, 1.87, 2.30, 2.82)
  points.qempo_kl = tuple(
    (("constraints.quality.bound", r), ("constraints.kl.bound", k)) for r, k in zip(floors, budgets)
  )
  return config
