"""GRPO and QEMPO-KL on the open-list tasks, over three seeds.

python -m experiments.demo --config=configs/open_list_study.py --workdir=runs/open_list_study
"""

from ml_collections import ConfigDict

from configs import online_grpo
from configs import online_qempo_kl


def get_config() -> ConfigDict:
  """One config per method; QEMPO-KL replays."""
  config = ConfigDict()
  config.seeds = (0, 1, 2)
  config.methods = ("grpo", "qempo_kl")
  config.grpo = online_grpo.get_config()
  config.qempo_kl = online_qempo_kl.get_config()
  for method in config.methods:
    config[method].checkpoint.every = -1  # Samples and metrics are kept, not states of 1.6 GB.
  return config
