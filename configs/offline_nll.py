"""Supervised fine-tuning: the negative log-likelihood of the chosen responses, by the same loop.

  python -m experiments.train --config=configs/offline_nll.py --workdir=runs/nll
  ... --config.data.source=jsonl:rows.jsonl --config.offline.pairs=source --config.offline.measure_every=0

Rows are {"prompt", "completion"}, or pairs whose chosen side is learned.
"""

from ml_collections import ConfigDict

from configs import offline_dpo


def get_config() -> ConfigDict:
  """The chosen sides of the same pairs: items drawn uniformly from each answer set."""
  config = offline_dpo.get_config()
  config.offline.loss = "nll"
  return config
