"""Supervised fine-tuning: the negative log-likelihood of the chosen responses, in the same training loop.

  python -m experiments.train --config=configs/offline_nll.py --workdir=runs/nll
  ... --config.data.source=jsonl:rows.jsonl --config.offline.pairs=source --config.offline.measure_every=0

Rows are {"prompt", "completion"}, or pairs whose chosen response is learned.
"""

from ml_collections import ConfigDict

from configs import offline_dpo


def get_config() -> ConfigDict:
  """Chosen responses of configs/offline_dpo.py: items drawn uniformly from each answer set."""
  config = offline_dpo.get_config()
  config.offline.loss = "nll"
  return config
