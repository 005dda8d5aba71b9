"""SmolLM2-135M on one log of preference pairs, three uses: DPO, likelihood and listwise, and pairs of equal quality.

  export QEMPO_DATA_DIR=FOLDER
  python -m experiments.train_reward_model --config=configs/studies/floor_reward.py --workdir=runs/floor_reward
  python -m experiments.train_reward_model --config=configs/studies/judge_reward.py --workdir=runs/judge_reward
  python -m experiments.make_pairs --config=configs/studies/diverse_pairs.py:equal_quality --workdir=runs/equal_quality
  python -m experiments.frontier --config=configs/studies/diverse_pairs.py --workdir=runs/diverse_pairs

Resumable: finished runs (those with a result.json) are not repeated. Quality is the score of the second reward model, as in
configs/studies/offline_pairs.py, whose length limits, updates and evaluation these are.
"""

from ml_collections import ConfigDict

from configs import frontier_open_list
from configs.frontier_open_list import sweep
from configs.studies import offline_pairs

# 725 prompts, up to 15 models each, GPT-4's comparison with one and the same model's answer.
LOG = "jsonl:$QEMPO_DATA_DIR/preference/alpaca_eval_gpt4_train.jsonl.gz"
METHODS = ("base", "dpo", "nll", "listwise", "equal_quality")


def get_config(part: str = "") -> ConfigDict:
  """The sweep; with the argument "equal_quality" the config that makes that method's pairs."""
  if part == "equal_quality":
    return equal_quality_pairs()
  config = frontier_open_list.get_config()
  config.seeds = (0, 1)
  config.methods = METHODS
  config.quality = "judge"
  config.diversity = ("semantic_distance", "distinct_2", "entropy")
  config.reference_point = (-2.0, 0.0)
  config.baseline = "dpo"
  config.levels = (0.0, 0.25, 0.5)
  config.tolerance = 0.1
  for method in METHODS:
    config[method] = offline_pairs.shared()
    config[method].data.source = LOG
  config.base.steps = 0

  # 16 responses an update for every method.
  for method in ("dpo", "equal_quality"):
    config[method].offline.loss = "dpo"
    config[method].offline.beta = 0.1
  config.nll.offline.loss = "nll"
  config.nll.offline.pairs_per_step = 16
  config.listwise.offline.loss = "listwise"
  config.listwise.offline.alpha = 0.1
  config.listwise.offline.beta = 0.1
  config.listwise.offline.list_size = 4
  config.listwise.offline.pairs_per_step = 4
  config.equal_quality.data.source = "jsonl:runs/equal_quality/pairs.jsonl"

  points = config.points = ConfigDict()
  for method in METHODS:
    points[method] = sweep("optimizer.learning_rate", 2e-5)
  for method in ("dpo", "listwise"):
    points[method] = sweep("optimizer.learning_rate", 1e-5, 2e-5)
  points.base = sweep("sampling.temperature", 1.0)
  return config


def equal_quality_pairs() -> ConfigDict:
  """Pairs after ReDiPO from the log: two answers that won all their comparisons, the more distinct one chosen."""
  config = offline_pairs.shared()
  config.make_pairs.select = "equal_quality"
  config.make_pairs.pool = LOG
  config.make_pairs.sample = False
  config.make_pairs.per_prompt = 16
  return config
