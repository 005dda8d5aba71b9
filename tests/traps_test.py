"""docs/traps.md: the numbers it quotes are those stored, and those stored are what the library computes."""

import json
import math
import pathlib

import jax
import numpy as np

from experiments.studies import traps

DOCS = pathlib.Path(__file__).parents[1] / "docs"
STORED = json.loads((DOCS / "figures" / "traps.json").read_text("utf-8"))


def test_the_page_quotes_what_is_stored():
  page = " ".join((DOCS / "traps.md").read_text("utf-8").split())
  one, two, three, four = (STORED[str(n)] for n in (1, 2, 3, 4))
  slopes, example, most = one["slopes_near_min_kl"], two["example"], three["by_number"][-1]
  runs = four["runs"]
  measured = [run["final_reward"] for run in runs.values() if run["measured"]]
  for said in (
    f"from K = {one['min_kl']:.2f} to {one['qempo_kl']:.2f} nats",
    f"from {one['rlhf_entropy']:.2f} to {one['qempo_entropy']:.2f}",
    f"to {one['distance_from_rlhf_at_min_kl']:.0e} in L1".replace("e-0", "e-"),
    f"{slopes['quality']:.3f} for the floor's, {slopes['kl']:.3f} for the budget's",
    f"RLHF has entropy {example['entropy']['rlhf']:.3f} and QEMPO {example['entropy']['qempo']:.3f}",
    f"expected reward is {example['reward']['rlhf']:.2f} and QEMPO's {example['reward']['qempo']:.2f}",
    f"{most['entropy']:.2f} nats, more than the log 50 = {math.log(three['good']):.2f}",
    f"With lambda = {four['chosen_multiplier']:.2f}",
    f"E[r] = {runs['fixed, 0.5']['final_reward']:.2f} for hesitant",
    f"{runs['fixed, 1.0']['final_reward']:.2f} for c = 1, and {runs['fixed, 2.0']['final_reward']:.2f}",
    f"{min(measured):.3f} to {max(measured):.3f} over the last",
    "lambda near {:.1f}, {:.1f} and {:.1f}".format(
      *(run["final_multiplier"] for run in runs.values() if run["measured"])
    ),
    f"to {four['largest_error_of_training']:.0e} in E[r]".replace("e-0", "e-"),
  ):
    assert said in page, said


def test_what_is_stored_shows_each_trap():
  one, two, three, four = (STORED[str(n)] for n in (1, 2, 3, 4))
  assert np.all(np.diff(one["entropy"]) > -1e-9)
  assert np.allclose(list(one["slopes_near_min_kl"].values()), -0.5, atol=0.01)
  gap = lambda key: np.subtract(two[key]["qempo"], two[key]["rlhf"])
  assert np.min(gap("entropy_at_temperature")) < 0 < np.max(gap("entropy_at_temperature"))
  assert np.min(gap("entropy_at_floor")) > -1e-9
  for row in three["by_number"]:
    assert abs(row["entropy_inside"] - math.log(three["good"])) < 1e-9
  assert three["by_number"][-1]["entropy"] > math.log(three["good"]) + 1
  ends = {(r["method"], r["min_reward"]): r for r in three["by_length"] if r["cap"] == 12}
  assert ends["qempo", 0.6]["tokens"] > ends["qempo", 0.9]["tokens"]
  assert ends["qempo", 0.6]["tokens"] > ends["qempo_kl", 0.6]["tokens"]
  for run in four["runs"].values():
    misses = abs(run["final_reward"] - four["min_reward"]) > 0.01
    assert misses == (not run["measured"] and run["decisiveness"] != 1.0)


def test_the_order_of_entropies_is_computed_as_stored():
  with jax.enable_x64(True):
    found = traps.order_of_entropies()
  stored = STORED["2"]
  np.testing.assert_allclose(found["temperature"], stored["temperature"], rtol=1e-12)
  for key in ("entropy_at_temperature", "entropy_at_floor"):
    for method in ("qempo", "rlhf"):
      np.testing.assert_allclose(found[key][method], stored[key][method], atol=1e-8)
