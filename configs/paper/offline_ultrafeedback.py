r"""UltraFeedback offline: DPO, SPL, QEMPO-KL or QEMPO on one of the models of configs/paper/models.py.

  python -m experiments.train --config=configs/paper/offline_ultrafeedback.py:qwen2.5-7b,qempo_kl \
      --workdir=/mnt/RUN --config.data.source=jsonl:PATH
  python -m experiments.compile_check --config=configs/paper/offline_ultrafeedback.py:qwen2.5-7b,qempo_kl \
      --topology=v5p:2x2x4

Weights are fixed: without a measured reward, no floor is enforced. For a learned multiplier, name a reward and set
offline.weights=multipliers, offline.measure_every and constraints.quality.bound. Memory and step times: docs/pods.md.
"""

from ml_collections import ConfigDict

from configs.paper import models

METHODS = ("dpo", "spl", "qempo_kl", "qempo")


def get_config(argument: str) -> ConfigDict:
  """MODEL,METHOD; weights, lengths and the learning rate are our choice."""
  model, method = models.split(argument, METHODS)
  config = models.get_config(model)
  config.steps = 950  # One epoch of about 61,000 pairs.
  config.data.source = "jsonl:ultrafeedback.jsonl"
  config.data.max_prompt_length = 512
  config.sampling.max_response_length = 1024
  config.optimizer.learning_rate = 5e-7
  config.offline.loss = method
  config.offline.alpha = 0.1
  config.offline.beta = 0.1 if method == "dpo" else 0.05
  return config
