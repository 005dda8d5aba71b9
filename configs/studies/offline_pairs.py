"""SmolLM2-135M on real preference pairs: DPO, SPL, QEMPO with fixed weights; QEMPO-KL and QEMPO with a measured floor.

  export QEMPO_DATA_DIR=FOLDER
  python -m experiments.train_reward_model --config=configs/studies/floor_reward.py --workdir=runs/floor_reward
  python -m experiments.train_reward_model --config=configs/studies/judge_reward.py --workdir=runs/judge_reward
  python -m experiments.frontier --config=configs/studies/offline_pairs.py --workdir=runs/offline_pairs

Resumable: finished runs (those with a result.json) are not repeated. The floor bounds the first reward model, trained
on the policies' own pairs. Quality is the score of the second, trained on other people's preferences.
"""

from ml_collections import ConfigDict

from configs import base
from configs import frontier_open_list
from configs.frontier_open_list import sweep

METHODS = ("base", "dpo", "spl", "qempo_fixed", "qempo_kl", "qempo")
_REWARD = "qempo_jax.rewards.reward_model.load('runs/{}_reward', compute_dtype='bfloat16')"


def get_config() -> ConfigDict:
  """Pairs of UltraFeedback and AlpacaEval with short answers; evaluation on NoveltyBench and MT-Bench prompts."""
  config = frontier_open_list.get_config()
  config.seeds = (0, 1, 2)
  config.methods = METHODS
  config.quality = "judge"
  config.diversity = ("semantic_distance", "distinct_2", "entropy")
  config.reference_point = (-2.0, 0.0)
  config.baseline = "dpo"
  config.levels = (-0.25, 0.0, 0.25)
  config.tolerance = 0.1
  for method in METHODS:
    config[method] = shared()
  config.base.steps = 0

  define_losses(config)
  for method in ("qempo_kl", "qempo"):
    config[method].offline.measure_every = 4
    config[method].constraints.quality.bound = -0.1
    config[method].constraints.kl.gain = 0.02
  config.qempo_kl.constraints.kl.bound = 20.0

  points = config.points = ConfigDict()
  for method in METHODS:
    points[method] = sweep("optimizer.learning_rate", 2e-5)
  points.base = sweep("sampling.temperature", 1.0)
  return config


def define_losses(config: ConfigDict) -> None:
  """Sets the loss of each method, and its weights: fixed, or learned from measurements."""
  config.dpo.offline.loss = "dpo"
  config.dpo.offline.beta = 0.1

  config.spl.offline.loss = "spl"  # QEMPO-KL's loss with fixed weights.
  config.spl.offline.alpha = 0.1
  config.spl.offline.beta = 0.05

  config.qempo_fixed.offline.loss = "qempo"
  config.qempo_fixed.offline.alpha = 0.1

  for method in ("qempo_kl", "qempo"):
    of_method = config[method]
    of_method.offline.loss = method
    of_method.offline.weights = "multipliers"
    of_method.offline.label_smoothing = 0.1
    of_method.constraints.quality.start = 10.0
    of_method.constraints.quality.gain = 0.2


def shared() -> ConfigDict:
  """Pairs, reward and evaluation of every method."""
  config = base.get_config()
  config.steps = 24
  # Files alpaca_eval_gpt4 and ultrafeedback_sample.
  config.data.source = "jsonl:$QEMPO_DATA_DIR/preference/[au]*_train.jsonl.gz"
  config.data.max_prompt_length = 128
  config.data.length_window = 16
  config.data.prompts_per_step = 8
  config.reward.function = _REWARD.format("floor")
  config.reward.max = None
  config.sampling.group_size = 8
  config.sampling.max_response_length = 64
  config.offline.pairs_per_step = 8
  config.optimizer.warmup_steps = 3
  config.optimizer.final_fraction = 0.1
  config.compute.dtype = "bfloat16"
  config.checkpoint.every = -1
  config.evaluation.splits = (
    "jsonl:$QEMPO_DATA_DIR/prompts/noveltybench_curated.jsonl",
    "jsonl:$QEMPO_DATA_DIR/mt_bench/question.jsonl",
  )
  config.evaluation.reward = _REWARD.format("judge")
  config.evaluation.max_prompts = 24  # The first of each file.
  config.evaluation.samples_per_prompt = 6
  config.evaluation.prompts_per_batch = 16
  return config
