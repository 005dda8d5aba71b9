"""What the two online tasks share: GRPO, QEMPO-KL and QEMPO. Not run by itself."""

from ml_collections import ConfigDict

from configs.paper import models

METHODS = ("grpo", "qempo_kl", "qempo")


def get_config(argument: str) -> ConfigDict:
  """MODEL,METHOD; floor, budget, gains and the learning rate are our choice."""
  model, method = models.split(argument, METHODS)
  config = models.get_config(model)
  config.steps = 500
  config.objective.method = method
  config.optimizer.learning_rate = 1e-6
  config.sampling.group_size = 8
  config.reward.function = "qempo_jax.rewards.math.math_reward"
  config.reward.max = 1.0
  if method == "grpo":  # the GRPO paper's KL weight of 0.04 (arXiv 2402.03300)
    config.objective.entropy_weight = 0.0
    config.objective.baseline = "group_mean"
    config.objective.normalise = True
    config.duals.quality.initial = 25.0
    return config
  config.objective.entropy_gradient = "rao_blackwell"
  config.objective.min_reward = 0.5
  config.duals.quality.initial = 100.0
  if method == "qempo_kl":
    config.objective.max_kl = 20.0
    config.duals.kl.integral_gain = 0.02
  else:
    config.duals.kl.initial = 0.0
  return config
