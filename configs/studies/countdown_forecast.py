"""Forecast of QEMPO-KL on countdown puzzles from reference samples; see configs/studies/countdown_budget.py.

python -m experiments.feasibility --config=configs/studies/countdown_forecast.py --workdir=runs/countdown_forecast
"""

from ml_collections import ConfigDict

from configs.studies import countdown_budget


def get_config() -> ConfigDict:
  """The method of configs/studies/countdown_budget.py."""
  return countdown_budget.get_config().qempo_kl
