"""QEMPO-KL: maximise entropy subject to E[r] >= R and KL(pi || pi_ref) <= K; both multipliers are learned.

python -m experiments.train --config=configs/online_qempo_kl.py --workdir=runs/qempo_kl
"""

from ml_collections import ConfigDict

from configs import open_list


def get_config() -> ConfigDict:
  """Good answers are replayed by trajectory balance, so that none is forgotten once sampling misses it."""
  config = open_list.get_config()
  config.method = "qempo_kl(entropy_gradient='rao_blackwell')"
  config.constraints.quality.bound = 0.8
  config.constraints.quality.margin = 0.15
  config.constraints.kl.bound = 5.5
  config.sampling.group_size = 24
  config.replay.size = 24
  config.replay.weight = 1.5
  config.replay.key = "set_name"
  config.constraints.quality.start = 100.0
  config.constraints.quality.gain = 0.1
  config.constraints.kl.start = 1.0
  config.constraints.kl.gain = 0.02
  return config
