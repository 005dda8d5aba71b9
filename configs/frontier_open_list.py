"""The sweep of all methods on open-list tasks with SmolLM2-135M: quality against diversity, three seeds.

  python -m experiments.frontier --config=configs/frontier_open_list.py --workdir=runs/frontier_open_list

Never run yet. Estimate: about 35 runs a seed of 6 to 10 minutes each on 2 cores, so 10 to 18 hours for three seeds.
Resumable: finished runs (those with a result.json) are not repeated. Some methods only:
--config.methods=base,grpo,qempo_kl.
"""

import itertools

from ml_collections import ConfigDict

from configs import online_grpo
from configs import online_qempo
from configs import online_qempo_kl
from configs import open_list

RAO_BLACKWELL = "entropy_gradient='rao_blackwell'"


def sweep(key: str, *values) -> tuple:
  """Operating points that set one key to each value."""
  return tuple(((key, value),) for value in values)


def methods(name: str, **settings) -> tuple:
  """Operating points of one method: every combination of the settings, each given as a tuple of numbers."""
  texts = (
    ", ".join(f"{key}={value:g}" for key, value in zip(settings, point))
    for point in itertools.product(*settings.values())
  )
  return sweep("method", *(f"{name}({text})" for text in texts))


def spl_grid(alphas, shares) -> tuple:
  """Operating points of SPL: entropy weight alpha, and reference weight beta = share * alpha."""
  points = itertools.product(alphas, shares)
  return sweep("method", *(f"spl(alpha={alpha:g}, beta={share * alpha:g}, {RAO_BLACKWELL})" for alpha, share in points))


def get_config() -> ConfigDict:
  """Each method is a complete config; an operating point overrides a few of its keys."""
  config = ConfigDict()
  config.runner = "online"  # "online": the training loop; "enumerable": a tiny model whose responses are enumerated.
  config.seeds = (0, 1, 2)
  config.quality = "reward"  # Figure of a run on the vertical axis.
  config.diversity = ("effective_answers", "entropy")  # Figures on horizontal axes; the verdict uses the first.
  config.reference_point = (0.0, 0.0)  # Reference point (quality, diversity) of the hypervolume.
  config.baseline = "grpo"  # Method that the others are compared with at matched quality.
  config.levels = (0.6, 0.7, 0.8, 0.9)  # Quality levels at which methods are matched.
  config.tolerance = 0.03  # Largest quality difference between a point and its level.
  config.num_draws = 2000  # Bootstrap resamples over prompts, then seeds.

  config.enumerable = ConfigDict()  # Read by the enumerable runner alone.
  config.enumerable.vocab_size = 5  # Tokens, with the end-of-sequence token.
  config.enumerable.max_length = 3  # Largest response, tokens.
  config.enumerable.num_prompts = 12  # Prompts of two tokens.
  config.enumerable.num_good = 8  # Responses of reward 1 to each prompt; the others have at most 0.6.
  config.enumerable.seed = 0  # Seed of the reference and of the rewards.
  config.enumerable.width = 24  # Hidden size of the transformer.
  config.enumerable.init_stddev = 0.3  # Standard deviation of initial matrices; the initial policy is the reference.

  define_methods(config)
  config.points = ConfigDict()
  config.points.base = sweep("sampling.temperature", 0.5, 0.7, 1.0, 1.3)
  betas = (0.08, 0.04, 0.02, 0.01)
  config.points.grpo = methods("grpo", beta=betas)
  config.points.grpo_bonus = methods("grpo", beta=(0.04,), token_entropy_weight=(0.003, 0.01, 0.03, 0.1))
  config.points.spl = spl_grid((0.01, 0.02, 0.04), (0.25, 0.5, 0.75))
  config.points.mara = methods("mara", beta=betas[:3])
  config.points.ucpo = methods("ucpo", tau=(0.2, 0.5, 1.0))
  config.points.setpo = methods("setpo", weight=(0.3, 1.0, 3.0))
  config.points.qempo_kl = sweep("constraints.quality.bound", 0.6, 0.7, 0.8, 0.9)
  config.points.qempo = sweep("constraints.quality.bound", 0.6, 0.7, 0.8, 0.9)
  return config


def define_methods(config: ConfigDict) -> None:
  """Adds the nine methods without their operating points."""
  config.methods = ("base", "grpo", "grpo_bonus", "spl", "mara", "ucpo", "setpo", "qempo_kl", "qempo")

  config.base = open_list.get_config()
  config.base.steps = 0  # The reference, sampled at several temperatures.

  config.grpo = online_grpo.get_config()

  # GRPO with the usual fixed bonus on next-token entropies (biased, see losses.token_entropy_bonus_loss).
  config.grpo_bonus = online_grpo.get_config()
  config.grpo_bonus.method = "grpo(beta=0.04, token_entropy_weight=0.01)"

  # Fixed weights (alpha, beta) of max E[r] + alpha H + beta E[log q]: QEMPO-KL's family, nothing enforced.
  config.spl = online_qempo_kl.get_config()
  config.spl.method = f"spl(alpha=0.02, beta=0.01, {RAO_BLACKWELL})"
  config.spl.constraints.quality.bound = None
  config.spl.constraints.kl.bound = None

  # RLHF on augmented rewards that make the good responses of a group equally likely.
  config.mara = online_grpo.get_config()
  config.mara.method = "mara(beta=0.04)"

  # GRPO whose correct responses share their advantage out towards rarer ones.
  config.ucpo = online_grpo.get_config()
  config.ucpo.method = "ucpo(tau=0.5)"

  # GRPO with credit for what a response adds to its group's diversity.
  config.setpo = online_grpo.get_config()
  config.setpo.method = "setpo(weight=1.0)"

  config.qempo_kl = online_qempo_kl.get_config()
  config.qempo = online_qempo.get_config()
  for method in config.methods:
    config[method].checkpoint.every = -1  # Samples and figures are kept, not states of 1.6 GB.
