"""MATH online: GRPO, QEMPO-KL or QEMPO on one of the models of configs/paper/models.py, which names the slice.

  python -m experiments.train --config=configs/paper/online_math.py:qwen2.5-7b,qempo_kl --workdir=/mnt/RUN \
      --config.data.source=jsonl:PATH
  python -m experiments.compile_check --config=configs/paper/online_math.py:qwen2.5-7b,qempo_kl --topology=v5p:2x2x4

Memory and step times: the table in docs/pods.md. Lengths are our choice.
"""

from ml_collections import ConfigDict

from configs.paper import online


def get_config(argument: str) -> ConfigDict:
  """MODEL,METHOD: a model of configs/paper/models.py, and grpo, qempo_kl or qempo."""
  config = online.get_config(argument)
  config.data.source = "jsonl:math.jsonl"
  config.data.max_prompt_length = 512
  config.sampling.max_response_length = 1024
  return config
