"""QEMPO: maximise entropy subject to E[r] >= R; the quality multiplier is learned, no reference in the objective.

python -m experiments.train --config=configs/online_qempo.py --workdir=runs/qempo
"""

from ml_collections import ConfigDict

from configs import online_qempo_kl


def get_config() -> ConfigDict:
  """QEMPO-KL's settings without the KL term."""
  config = online_qempo_kl.get_config()
  config.method = "qempo(entropy_gradient='rao_blackwell')"
  config.constraints.kl.bound = None
  return config
