"""Completions of any program, compared and certified without a model; see docs/evaluation.md.

python -m experiments.evaluate --config=configs/my_completions.py --workdir=runs/others --config.evaluation.floor=0.8
"""

from ml_collections import ConfigDict
from ml_collections import config_dict

from configs import base


def get_config() -> ConfigDict:
  """Reads runs/others/samples/*.jsonl; the floor has no default."""
  config = base.get_config()
  config.evaluation.sample = False
  del config.evaluation["floor"]  # The default, none, would stay beneath the placeholder.
  config.evaluation.floor = config_dict.required_placeholder(float)  # Least mean reward to certify.
  return config
