"""The demo: a real 135M-parameter model aligned three ways on open-list tasks, compared at one quality floor.

make demo
python -m experiments.demo --config=configs/demo.py --workdir=runs/demo
"""

from ml_collections import ConfigDict

from configs import online_grpo
from configs import online_qempo
from configs import online_qempo_kl


def get_config() -> ConfigDict:
  """One config per method; only the method, its duals and its replay differ."""
  config = ConfigDict()
  config.seeds = (0,)  # Training seeds; the time grows in proportion.
  config.methods = ("grpo", "qempo_kl", "qempo")  # Method configs below to train, in this order.
  config.grpo = online_grpo.get_config()
  config.qempo = online_qempo.get_config()
  config.qempo_kl = online_qempo_kl.get_config()
  for method in config.methods:
    config[method].checkpoint.every = -1  # The demo keeps samples and metrics, not three states of 1.6 GB.
  return config
