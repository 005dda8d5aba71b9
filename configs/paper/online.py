"""Settings that the two online tasks share: GRPO, QEMPO-KL and QEMPO; not run by itself."""

from ml_collections import ConfigDict

from configs.paper import models

METHODS = ("grpo", "qempo_kl", "qempo")


def get_config(argument: str) -> ConfigDict:
  """MODEL,METHOD; floor, budget, gains and the learning rate are our choice."""
  model, method = models.split(argument, METHODS)
  config = models.get_config(model)
  config.steps = 500
  config.optimizer.learning_rate = 1e-6
  config.sampling.group_size = 8
  config.reward.function = "qempo_jax.rewards.math.math_reward"
  config.reward.max = 1.0
  config.reward.max = 1.0
  if method == "grpo":  # the GRPO paper's KL weight of 0.04 (arXiv 2402.03300)
    config.method = "grpo(beta=0.04)"
    return config
  config.method = f"{method}(entropy_gradient='rao_blackwell')"
  config.constraints.quality.bound = 0.5
  config.constraints.quality.start = 100.0
  if method == "qempo_kl":
    config.constraints.kl.bound = 20.0
    config.constraints.kl.gain = 0.02
  return config
