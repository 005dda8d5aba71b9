"""The reward model behind the quality floor of the preference-pair study: AI feedback, truncated at 64 tokens.

  export QEMPO_DATA_DIR=FOLDER
  python -m experiments.train_reward_model --config=configs/studies/floor_reward.py --workdir=runs/floor_reward

It trains on the same pairs as the policies. Responses are truncated as in the study's sampling, so that most pairs have
equal lengths, and the model cannot tell them apart by length.
"""

from ml_collections import ConfigDict

from configs import reward_model

DATA = "jsonl:$QEMPO_DATA_DIR/preference/"


def get_config() -> ConfigDict:
  """configs/reward_model.py with more pairs, truncated."""
  config = reward_model.get_config()
  config.steps = 300
  config.sampling.max_response_length = 64
  config.compute.bucket = 64
  r = config.reward_model
  r.cut_responses = True
  r.sources = (DATA + "ultrafeedback_sample_train.jsonl.gz", DATA + "alpaca_eval_gpt4_train.jsonl.gz")
  r.heldout_share = 0.0  # The held-out files have prompts of their own.
  r.pairs_per_source = 3000
  r.heldout_per_source = 600
  r.pairs_per_step = 16
  r.validate_every = 100
  return config
