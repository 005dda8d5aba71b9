"""GRPO and QEMPO-KL of the demo over three seeds.

python -m experiments.demo --config=configs/open_list_study.py --workdir=runs/open_list_study
"""

from ml_collections import ConfigDict

from configs import demo


def get_config() -> ConfigDict:
  """The demo's settings."""
  config = demo.get_config()
  config.seeds = (0, 1, 2)
  config.methods = ("grpo", "qempo_kl")
  return config
