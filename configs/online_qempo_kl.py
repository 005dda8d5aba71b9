"""QEMPO-KL: maximise entropy subject to E[r] >= R and KL(pi || pi_ref) <= K; both multipliers are learned.

  python -m experiments.train --config=configs/online_qempo_kl.py --workdir=runs/qempo_kl
"""

from ml_collections import ConfigDict

from configs import open_list


def get_config() -> ConfigDict:
  """Good answers found earlier are replayed by trajectory balance, so that none is lost once it left the samples."""
  config = open_list.get_config()
  config.objective.method = "qempo_kl"
  config.objective.min_reward = 0.8
  config.objective.margin = 0.15
  config.objective.entropy_gradient = "rao_blackwell"
  config.objective.max_kl = 5.5
  config.sampling.group_size = 24
  config.replay.size = 24
  config.replay.weight = 1.5
  config.replay.key = "set_name"
  config.duals.quality.initial = 100.0
  config.duals.quality.integral_gain = 0.1
  config.duals.kl.initial = 1.0
  config.duals.kl.integral_gain = 0.02
  return config
