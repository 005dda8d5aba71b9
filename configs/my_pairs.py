"""Your own preference pairs: DPO as it stands, other losses and a measured floor by the keys below; see docs/own_data.md.

python -m experiments.train --config=configs/my_pairs.py --config.data.source=jsonl:my_pairs.jsonl --workdir=runs/mine
"""

from ml_collections import ConfigDict
from ml_collections import config_dict

from configs import base


def get_config() -> ConfigDict:
  """Neutral values; the source of the pairs has no default."""
  config = base.get_config()
  config.data.source = config_dict.required_placeholder(str)  # Such as jsonl:my_pairs.jsonl; see docs/data.md.
  config.steps = 200
  config.offline.loss = "dpo"
  config.offline.beta = 0.1
  config.optimizer.learning_rate = 5e-6
  config.optimizer.warmup_steps = 10
  return config
