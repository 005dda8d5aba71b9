"""QEMPO-C against GRPO with its beta and learning rate swept, on the open-list tasks, without replay.

python -m experiments.demo --config=configs/open_list_claim.py --workdir=runs/open_list_claim

Trained policies are scored exactly, which can take longer than to train them: --config.qempo_c.evaluation.exact=False leaves
it out for all, and --config.qempo_c.evaluation.splits=heldout_wordings, evaluates those prompts alone.
"""

from ml_collections import ConfigDict

from configs import online_grpo
from configs import online_qempo_c


def get_config() -> ConfigDict:
  """One config per method: 30 updates of 4 prompts with 32 samples each, for all."""
  config = ConfigDict()
  config.seeds = (0, 1, 2)  # Training seeds; the time grows in proportion.
  config.methods = ("qempo_c", "grpo_beta04", "grpo_beta04_slow", "grpo_beta08", "grpo_beta125", "grpo_beta25")
  config.qempo_c = online_qempo_c.get_config()
  for name, beta, rate in (
    ("grpo_beta04", 0.04, 4e-5),
    ("grpo_beta04_slow", 0.04, 2e-5),
    ("grpo_beta08", 0.08, 4e-5),
    ("grpo_beta125", 0.125, 4e-5),
    ("grpo_beta25", 0.25, 4e-5),
  ):
    config[name] = online_grpo.get_config()
    config[name].method = f"grpo(beta={beta})"
    config[name].optimizer.learning_rate = rate
  for method in config.methods:
    config[method].steps = 30
    config[method].evaluation.exact = True
    config[method].evaluation.exact_base = False
    config[method].checkpoint.every = -1  # Samples and metrics are kept, not states of 1.6 GB.
  return config
