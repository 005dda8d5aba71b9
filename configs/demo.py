"""The demo: a real 135M-parameter model aligned two ways on open-list tasks, compared at one quality floor.

make demo
python -m experiments.demo --config=configs/demo.py --workdir=runs/demo
"""

from ml_collections import ConfigDict

from configs import online_grpo
from configs import online_qempo_c


def get_config() -> ConfigDict:
  """One config per method; neither replays."""
  config = ConfigDict()
  config.seeds = (0,)  # Training seeds; the time grows in proportion.
  config.methods = ("grpo", "qempo_c")  # Method configs below to train, in this order.
  config.grpo = online_grpo.get_config()
  config.qempo_c = online_qempo_c.get_config()
  for method in config.methods:
    config[method].steps = 30
    config[method].checkpoint.every = -1  # The demo keeps samples and metrics, not states of 1.6 GB.
  return config
