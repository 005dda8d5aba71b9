"""QEMPO-KL on countdown puzzles with a binding KL budget and multipliers that start at the forecast optimum.

  python -m experiments.studies.countdown_model runs/countdown_model
  python -m experiments.frontier --config=configs/studies/countdown_budget.py --workdir=runs/countdown_budget
  python -m experiments.studies.collect countdown_budget runs/countdown_budget
  python -m experiments.studies.results

In configs/countdown_small.py the budget of 2 nats never binds, and the KL multiplier goes to 0. The budget here is 0.9
nats, slightly above the least KL at which a floor of 0.85 can be met. `experiments.feasibility` forecasts, from 256
samples of each training puzzle: lambda 17.9 [16.1, 20.7], mu 3.15 [2.58, 4.16] (RLHF's KL at that floor: 0.70 [0.625,
0.785]).
"""

from ml_collections import ConfigDict

from configs import countdown_small


def get_config() -> ConfigDict:
  """One method of configs/countdown_small.py with three keys changed."""
  config = countdown_small.get_config()
  config.methods = ("qempo_kl",)
  config.baseline = "qempo_kl"
  config.qempo_kl.constraints.kl.bound = 0.9
  config.qempo_kl.constraints.quality.start = 18.0
  config.qempo_kl.constraints.kl.start = 3.0
  return config
