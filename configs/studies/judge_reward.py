"""The reward model that judges the study on preference pairs: people's preferences, none of the pairs trained on.

  export QEMPO_DATA_DIR=FOLDER
  python -m experiments.train_reward_model --config=configs/studies/judge_reward.py --workdir=runs/judge_reward

PandaLM's annotators and Anthropic's helpful dialogues (an upstream test split, parted here by prompt: its accuracy is no
result on that benchmark). The held-out AI feedback tells how far it agrees with the floor's reward model.
"""

from ml_collections import ConfigDict

from configs.studies import floor_reward
from configs.studies.floor_reward import DATA


def get_config() -> ConfigDict:
  """configs/studies/floor_reward.py on other sources."""
  config = floor_reward.get_config()
  config.steps = 160  # two epochs
  r = config.reward_model
  r.sources = (DATA + "pandalm_human.jsonl.gz", DATA + "hh_helpful_base_test.jsonl.gz")
  r.heldout_share = 0.15
  return config
