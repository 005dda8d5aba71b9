"""GRPO with a KL penalty in the reward (RLHF): max E[r] - 0.04 KL(pi || pi_ref), no floor.

  python -m experiments.train --config=configs/online_grpo.py --workdir=runs/grpo
"""

from ml_collections import ConfigDict

from configs import open_list


def get_config() -> ConfigDict:
  """The penalty is the GRPO paper's (arXiv 2402.03300): lambda = 1 / 0.04 and mu = 1 stay fixed, so alpha = beta."""
  config = open_list.get_config()
  config.objective.method = "grpo"
  config.objective.entropy_weight = 0.0
  config.objective.baseline = "group_mean"
  config.objective.normalise = True
  config.optimizer.learning_rate = 2e-5  # at which its reward matches QEMPO-KL's; at 4e-5 it is higher
  config.duals.quality.initial = 25.0
  config.duals.kl.initial = 1.0
  return config
