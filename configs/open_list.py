"""Tasks, sampling, optimizer and evaluation that the open-list experiments share; not run by itself."""

from ml_collections import ConfigDict

from configs import base

SETS = ("us_state", "country", "animal", "fruit", "musical_instrument")


def get_config() -> ConfigDict:
  """Five answer sets in four wordings; eight other wordings and four other sets are held out."""
  config = base.get_config()
  config.steps = 40
  config.data.sets = SETS
  config.data.wordings = (0, 1, 2, 3)
  config.data.prompts_per_step = 4
  config.data.max_prompt_length = 64
  config.reward.function = "open_list"
  config.reward.max = 1.0
  config.sampling.group_size = 32
  config.sampling.max_response_length = 6
  config.optimizer.learning_rate = 4e-5
  config.optimizer.final_fraction = 0.1
  config.compute.bucket = 32
  config.compute.dtype = "bfloat16"
  config.evaluation.samples_per_prompt = 32
  config.evaluation.exact = False  # Minutes of CPU for every 8 prompts of the reference; see docs/evaluation.md.
  return config
