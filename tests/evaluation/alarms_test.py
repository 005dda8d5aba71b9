"""The alarms whose thresholds no report test crosses."""

import pytest

from qempo_jax.evaluation import alarms


@pytest.mark.parametrize(
  ("effective", "base", "collapsed"), [(1.5, 4.0, True), (1.5, 2.0, False), (2.5, 8.0, False), (1.9, 3.7, False)]
)
def test_collapse_is_few_answers_and_less_than_half_of_the_base_models(effective, base, collapsed):
  figures = lambda value: {"effective_answers": {"mean": value}}
  assert alarms._collapsed(figures(effective), figures(base)) is collapsed


@pytest.mark.parametrize(("entropy", "reward", "exploded"), [(9.0, 0.5, True), (7.9, 0.5, False), (9.0, 0.85, False)])
def test_explosion_is_twice_the_entropy_below_the_floor(entropy, reward, exploded):
  figures = {"entropy": {"mean": entropy}, "reward": {"mean": reward}, "certificates": [{"bound": 0.8}]}
  assert alarms._exploded(figures, {"entropy": {"mean": 4.0}}) is exploded
