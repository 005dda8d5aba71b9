"""Your own prompts and reward: QEMPO-C, whose quality floor you set, or another method; see docs/own_data.md.

python -m experiments.train --config=configs/my_reward.py --config.data.source=jsonl:my_prompts.jsonl
    --config.reward.function=my_rewards.polite --config.constraints.quality.bound=0.8 --workdir=runs/mine
python -m experiments.train --config="configs/my_reward.py:grpo(beta=0.04)" --config.data.source=jsonl:my_prompts.jsonl
    --config.reward.function=my_rewards.polite --workdir=runs/grpo
"""

from ml_collections import ConfigDict
from ml_collections import config_dict

from configs import base


def get_config(method: str = "qempo_c") -> ConfigDict:
  """Neutral values; source, reward and, for QEMPO's methods, the floor have no defaults."""
  config = base.get_config()
  config.data.source = config_dict.required_placeholder(str)  # Such as jsonl:my_prompts.jsonl; see docs/data.md.
  config.steps = 200
  config.method = method
  # A dotted path, or a short name of rewards/registry.py.
  config.reward.function = config_dict.required_placeholder(str)
  if method.startswith("qempo"):
    del config.constraints.quality["bound"]  # The default, none, would stay beneath the placeholder.
    config.constraints.quality.bound = config_dict.required_placeholder(float)  # Least mean reward.
    config.constraints.quality.start = 2.0
    config.constraints.quality.parametrisation = "linear"
    config.constraints.quality.gain = 0.05
  config.data.prompts_per_step = 8
  config.sampling.group_size = 16
  config.optimizer.learning_rate = 5e-6
  config.optimizer.warmup_steps = 10
  return config
