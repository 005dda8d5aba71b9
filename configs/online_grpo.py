"""GRPO with a KL penalty in the reward (RLHF): max E[r] - 0.04 KL(pi || pi_ref), no floor.

python -m experiments.train --config=configs/online_grpo.py --workdir=runs/grpo
"""

from ml_collections import ConfigDict

from configs import open_list


def get_config() -> ConfigDict:
  """The KL weight, in reward units a nat, is the GRPO paper's (arXiv 2402.03300)."""
  config = open_list.get_config()
  config.method = "grpo(beta=0.04)"
  config.optimizer.learning_rate = 2e-5  # Its reward then matches QEMPO-KL's; at 4e-5 it is higher.
  return config
