"""Listwise: likelihood spread evenly over a prompt's different acceptable responses, and a pair loss against the others.

  python -m experiments.train --config=configs/offline_listwise.py --workdir=runs/listwise
  ... --config.data.source=jsonl:scored.jsonl --config.offline.pairs=source --config.offline.measure_every=0

Rows are {"prompt", "responses", "scores"}, as `experiments.make_pairs --config.make_pairs.select=scored` writes them, or pairs,
or single labelled responses. Other losses of the same rows: --config.offline.loss=nll (likelihood of the acceptable responses as
they were drawn), dpo, or regression with --config.constraints.quality.bound=0.85 (the closed-form target of QEMPO-C). Not run
to its end on the open lists yet, so no score to expect stands here.
"""

from ml_collections import ConfigDict

from configs import offline_dpo


def get_config() -> ConfigDict:
  """The responses of DPO's pairs by prompt: items of the answer set, and bad samples of the reference."""
  config = offline_dpo.get_config()
  config.offline.loss = "listwise"
  config.offline.alpha = 0.5
  config.offline.beta = 0.5
  config.offline.list_size = 32
  config.offline.pairs_per_step = 4
  return config
