"""GRPO with a KL penalty in the reward (RLHF): max E[r] - 0.04 KL(pi || pi_ref), no floor.

  python -m experiments.train --config=configs/online_grpo.py --workdir=runs/grpo
"""

from ml_collections import ConfigDict

from configs import open_list


def get_config() -> ConfigDict:
  """beta = 0.04 as in the GRPO paper (arXiv 2402.03300). lambda = 1 / beta and mu = 1 stay fixed, which is the boundary alpha = beta of the family."""
  config = open_list.get_config()
  config.objective.method = "grpo"
  config.objective.entropy_weight = 0.0
  config.objective.baseline = "group_mean"
  config.duals.quality.initial = 25.0
  config.duals.kl.initial = 1.0
  return config
