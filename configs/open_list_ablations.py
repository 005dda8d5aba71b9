"""Ablations of the open-list study: the effect of replay and of the learning rate.

python -m experiments.demo --config=configs/open_list_ablations.py --workdir=runs/open_list_ablations
"""

from ml_collections import ConfigDict

from configs import open_list_study


def get_config() -> ConfigDict:
  """GRPO with QEMPO-KL's replay and learning rate, with its learning rate alone, and QEMPO-KL without replay."""
  config = open_list_study.get_config()
  config.seeds = (0,)
  config.methods = ("grpo_replay", "qempo_kl_no_replay", "grpo_fast")

  config.grpo_fast = config.grpo.copy_and_resolve_references()
  config.grpo_fast.optimizer.learning_rate = config.qempo_kl.optimizer.learning_rate

  config.grpo_replay = config.grpo_fast.copy_and_resolve_references()
  config.grpo_replay.replay = config.qempo_kl.replay.copy_and_resolve_references()
  config.grpo_replay.sampling.group_size = config.qempo_kl.sampling.group_size

  config.qempo_kl_no_replay = config.qempo_kl.copy_and_resolve_references()
  config.qempo_kl_no_replay.replay.size = 0
  config.qempo_kl_no_replay.sampling.group_size = config.grpo.sampling.group_size
  return config
