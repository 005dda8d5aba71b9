"""The demo: a real 135M-parameter model aligned three ways on open-list tasks, compared at one quality floor.

make demo
python -m experiments.demo --config=configs/demo.py --workdir=runs/demo
"""

from ml_collections import ConfigDict

from configs import online_grpo
from configs import online_qempo
from configs import online_qempo_kl


def get_config() -> ConfigDict:
  """One config a method; everything but the objective, its duals and its replay is shared."""
  config = ConfigDict()
  config.seeds = (0,)  # of training; every seed takes as long again
  config.methods = ("grpo", "qempo_kl", "qempo")  # which of the groups below are trained, in this order
  config.grpo = online_grpo.get_config()
  config.qempo = online_qempo.get_config()
  config.qempo_kl = online_qempo_kl.get_config()
  for method in config.methods:
    config[method].checkpoint.every = -1  # the demo keeps samples and metrics, not three states of 1.6 GB
  return config
