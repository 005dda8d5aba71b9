"""The reward model whose reward the study on preference pairs holds to a floor: AI feedback, responses cut at 64 tokens.

  export QEMPO_DATA_DIR=FOLDER
  python -m experiments.train_reward_model --config=configs/studies/floor_reward.py --workdir=runs/floor_reward

It learns from the pairs that the policies train on. Responses are cut where the study's sampler cuts them, so that
most pairs are of one length, and length cannot tell those apart.
"""

from ml_collections import ConfigDict

from configs import reward_model

DATA = "jsonl:$QEMPO_DATA_DIR/preference/"


def get_config() -> ConfigDict:
  """configs/reward_model.py on more pairs, cut."""
  config = reward_model.get_config()
  config.steps = 300
  config.sampling.max_response_length = 64
  config.compute.bucket = 64
  r = config.reward_model
  r.cut_responses = True
  r.sources = (DATA + "ultrafeedback_sample_train.jsonl.gz", DATA + "alpaca_eval_gpt4_train.jsonl.gz")
  r.heldout_share = 0.0  # the held-out files have prompts of their own
  r.pairs_per_source = 3000
  r.heldout_per_source = 600
  r.pairs_per_step = 16
  r.validate_every = 100
  return config
