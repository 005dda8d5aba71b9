"""The reward model that judges the preference-pair study: human preferences, none of them used to train policies.

  export QEMPO_DATA_DIR=FOLDER
  python -m experiments.train_reward_model --config=configs/studies/judge_reward.py --workdir=runs/judge_reward

Sources are PandaLM's annotators and Anthropic's helpful dialogues. The latter are an upstream test split, divided here
by prompt, so accuracy on it is no benchmark result. The held-out AI feedback measures agreement with the floor's reward
model.
"""

from ml_collections import ConfigDict

from configs.studies import floor_reward
from configs.studies.floor_reward import DATA


def get_config() -> ConfigDict:
  """configs/studies/floor_reward.py with other sources."""
  config = floor_reward.get_config()
  config.steps = 160  # Two epochs.
  r = config.reward_model
  r.sources = (DATA + "pandalm_human.jsonl.gz", DATA + "hh_helpful_base_test.jsonl.gz")
  r.heldout_share = 0.15
  return config
