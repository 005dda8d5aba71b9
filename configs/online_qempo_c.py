"""QEMPO-C: maximise entropy subject to E[r] >= R, where unacceptable text must be text that the reference would write.

python -m experiments.train --config=configs/online_qempo_c.py --workdir=runs/qempo_c
"""

from ml_collections import ConfigDict

from configs import open_list


def get_config() -> ConfigDict:
  """A linear quality multiplier that starts below its optimum; no replay, the score-function gradient."""
  config = open_list.get_config()
  config.method = "qempo_c"
  config.constraints.quality.bound = 0.8
  config.constraints.quality.margin = 0.15
  config.constraints.quality.start = 2.0
  config.constraints.quality.parametrisation = "linear"
  config.constraints.quality.gain = 0.05
  return config
