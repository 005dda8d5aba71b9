"""MATH online with responses of 8192 tokens: GRPO, QEMPO-KL or QEMPO on one of the models of configs/paper/models.py.

  python -m experiments.train --config=configs/paper/online_math_long.py:qwen3-8b,qempo_kl --workdir=/mnt/RUN \
      --config.data.source=jsonl:PATH
  python -m experiments.compile_check --config=configs/paper/online_math_long.py:qwen3-8b,qempo_kl --topology=v5p:2x2x4

The experts of qwen3-30b-a3b are split over the tensor axis. Lengths and slices are our choice.
"""

from ml_collections import ConfigDict

from configs.paper import online_math


def get_config(argument: str) -> ConfigDict:
  """MODEL,METHOD: a model of configs/paper/models.py, and grpo, qempo_kl or qempo."""
  config = online_math.get_config(argument)
  config.sampling.max_response_length = 8192
  return config
