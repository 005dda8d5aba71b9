"""DPO: preference pairs and a fixed beta; the reward is measured every 10 steps, and no floor is enforced.

python -m experiments.train --config=configs/offline_dpo.py --workdir=runs/dpo
... --config.data.source=jsonl:pairs.jsonl --config.offline.pairs=source --config.offline.measure_every=0
    --config.sampling.max_response_length=256 --config.data.max_prompt_length=512
"""

from ml_collections import ConfigDict

from configs import open_list


def get_config() -> ConfigDict:
  """A uniformly drawn item of the answer set is preferred to a bad sample of the reference."""
  config = open_list.get_config()
  config.steps = 100
  config.offline.loss = "dpo"
  config.offline.beta = 0.1
  config.offline.pairs = "answers_against_samples"
  config.offline.pairs_per_step = 16
  config.offline.pairs_per_prompt = 64
  config.offline.measure_every = 10
  return config
