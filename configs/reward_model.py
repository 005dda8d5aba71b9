"""A reward model from SmolLM2-135M on real preference pairs; figures and time are in docs/reward_model.md.

  export QEMPO_DATA_DIR=FOLDER
  python -m experiments.train_reward_model --config=configs/reward_model.py --workdir=runs/reward_model

Settings were chosen with --config.reward_model.measure_heldout=false, without reading the held-out pairs.
"""

from ml_collections import ConfigDict

from configs import base

_DATA = "jsonl:$QEMPO_DATA_DIR/preference/"


def get_config() -> ConfigDict:
  """The last blocks and the head, trained on model answers judged by people (PandaLM) and by GPT-4 (the other two)."""
  config = base.get_config()
  config.steps = 400
  r = config.reward_model
  r.sources = (
    _DATA + "pandalm_human.jsonl.gz",
    _DATA + "ultrafeedback_sample_train.jsonl.gz",
    _DATA + "alpaca_eval_gpt4_train.jsonl.gz",
  )
  r.heldout = (_DATA + "ultrafeedback_sample_test.jsonl.gz", _DATA + "alpaca_eval_gpt4_test.jsonl.gz")
  r.heldout_share = 0.15
  r.validation_share = 0.1
  r.pairs_per_source = 600
  r.heldout_per_source = 150
  r.trainable = "last:3"
  r.cache = True
  r.pairs_per_step = 8
  r.centring_weight = 0.01
  r.validate_every = 50
  config.data.max_prompt_length = 128
  config.sampling.max_response_length = 224
  config.optimizer.learning_rate = 5e-5
  config.optimizer.warmup_steps = 20
  config.optimizer.final_fraction = 0.1
  config.optimizer.weight_decay = 0.01
  config.compute.dtype = "bfloat16"
  config.compute.bucket = 128
  config.checkpoint.every = 50
  return config
