"""Training ends at the exact optimum: a part of the study here, the whole matrix marked slow."""

import json
import pathlib

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.studies import controllers_over_problems
from experiments.studies import exactness
from experiments.studies.exactness_methods import COHERENT
from experiments.studies.exactness_methods import CONTROLS
from experiments.studies.exactness_methods import METHODS
from experiments.studies.exactness_methods import draw_responses
from experiments.studies.exactness_methods import enumerated_loss
from experiments.studies.exactness_methods import of_all_responses
from experiments.studies.exactness_methods import sampled_loss
from experiments.studies.exactness_problems import KINDS
from experiments.studies.exactness_problems import THRESHOLD
from experiments.studies.exactness_problems import random_problem
from experiments.studies.exactness_problems import random_problems
from experiments.studies.exactness_problems import table_policy
from qempo_jax import exact

FIGURES = pathlib.Path(__file__).parents[1] / "docs" / "figures"


def slow(*cell):
  return pytest.param(*cell, marks=pytest.mark.slow)


def _failures(rows):
  return [(row["seed"], row["error"]) for row in rows if not row["passed"]]


@pytest.mark.slow
@pytest.mark.parametrize(
  ("tier", "kind", "method"),
  [
    ("expected", "table", "policy gradient"),
    slow("expected", "table", "trajectory balance, off-policy"),
    slow("expected", "table", "preference pairs, learned multipliers"),
    slow("expected", "transformer", "policy gradient"),
    slow("sampled", "table", "trajectory balance"),
  ],
)
def test_a_part_of_the_matrix_ends_at_the_optimum(tier, kind, method):
  rows = exactness.rows(tier, kind, "qempo_kl", method, exactness.SEEDS[:2])
  assert not _failures(rows)


@pytest.mark.slow
def test_the_criterion_rejects_a_biased_gradient():
  rows = exactness.rows("expected", "table", "qempo_kl", "control: token-only entropy bonus", exactness.SEEDS[:2])
  assert len(_failures(rows)) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
  "cell",
  [
    cell
    for cell in exactness.cells()
    if (cell[0] == "sampled" and cell[3] not in COHERENT)
    or cell[3] in CONTROLS
    or cell == ("sampled", "table", "qempo_c", "QEMPO-C")
  ],
  ids=", ".join,
)
def test_every_sampled_run_ends_at_the_optimum_and_every_control_misses(cell):
  rows = exactness.rows(*cell, exactness.SEEDS)
  expected = len(rows) if cell[3] in CONTROLS else 0
  assert len(_failures(rows)) == expected, _failures(rows)


def test_the_page_says_how_many_stored_runs_pass():
  cells = json.loads((FIGURES / "exactness.json").read_text(encoding="utf-8"))["cells"]
  page = (FIGURES.parent / "exactness.md").read_text(encoding="utf-8")
  count = lambda rows: f"{sum(row['passed'] for row in rows)} of {len(rows)}"
  for tier, words in (("sampled", "{} runs pass"), ("expected", "{} pass")):
    of_tier = [c for c in cells if c["cell"][0] == tier]
    assert words.format(count([row for c in of_tier if c["cell"][3] in METHODS for row in c["rows"]])) in page
    for kind in KINDS:
      rows = [row for c in of_tier if c["cell"][3] in COHERENT and c["cell"][1] == kind for row in c["rows"]]
      assert count(rows) in page.partition("**QEMPO-C**")[2]
  assert not any(row["passed"] for c in cells if c["cell"][3] in CONTROLS for row in c["rows"])


def test_the_stored_rows_are_those_of_the_present_settings():
  stored = json.loads((FIGURES / "exactness.json").read_text(encoding="utf-8"))
  assert stored["tolerances"] == exactness.TOLERANCES
  cells = {tuple(cell["cell"]): cell for cell in stored["cells"]}
  assert set(cells) == set(exactness.cells())
  for (tier, kind, program, name), cell in cells.items():
    now = exactness.settings(tier, kind, exactness.ALL[name])
    assert cell["settings"] == json.loads(json.dumps(now._asdict()))
    assert [row["seed"] for row in cell["rows"]] == list(exactness.SEEDS)
    for row in cell["rows"]:
      within = [error <= exactness.TOLERANCES[k] for k, error in row["error"].items()]
      assert row["passed"] == all(within) and set(exactness.PROGRAMS[program][1:]) <= set(row["error"])


def test_problems_bind_both_constraints_strictly_inside():
  problem = random_problem(table_policy(), "qempo_kl", seed=0)
  slack = random_problem(table_policy(), "qempo", seed=0)
  assert problem.quality_multiplier > 0.1 and problem.kl_multiplier > 0.1
  assert slack.kl_multiplier == 0 and slack.entropy > problem.entropy
  np.testing.assert_array_equal(problem.rewards, slack.rewards)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["policy gradient", "preference pairs, exact weights"])
def test_the_enumerated_loss_is_the_mean_of_the_sampled_one(name):
  """In gradient: groups of two, or many pairs, averaged over many draws."""
  policy, method = KINDS["table"](), METHODS[name]
  problem = random_problem(policy, "qempo_kl", seed=1)
  multipliers = {"quality": jnp.asarray(1.5), "kl": jnp.asarray(0.5), "coherence": jnp.asarray(0.0)}

  def gradient(loss, key, **size):
    def of(params):
      first = lambda x: jax.tree.map(lambda leaf: leaf[0], x)
      inputs = first(of_all_responses(policy, params, problem)), problem.data_log_probs[0], key
      return loss(method, *inputs, multipliers=multipliers, **size)

    return jax.grad(of)(problem.params)[0]

  exact = gradient(enumerated_loss, None)
  keys = jax.random.split(jax.random.key(0), 20_000)
  draws = jax.lax.map(lambda key: gradient(sampled_loss, key, size=2), keys, batch_size=2000)
  error = np.abs(draws.mean(0) - exact) / np.maximum(draws.std(0) / np.sqrt(len(keys)), 1e-6)
  assert np.abs(exact).max() > 0.01 and error.max() < 4.5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", COHERENT)
def test_the_enumerated_loss_of_qempo_c_has_the_gradient_of_its_lagrangian(x64, kind, name):
  """With random parameters, so that what keeps a run from the optimum is not its estimator."""
  policy, multipliers = KINDS[kind](), {"quality": 1.7, "kl": 0.0, "coherence": 0.6}
  problem = random_problem(policy, "qempo_c", seed=3)
  double = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)
  problem = double(problem)._replace(params=double(policy.init(jax.random.key(7))))

  def loss(params):
    one = lambda *of: enumerated_loss(COHERENT[name], *of, None, multipliers=multipliers)
    return jnp.mean(jax.vmap(one)(of_all_responses(policy, params, problem), problem.data_log_probs))

  def lagrangian(params):
    log_probs = jnp.sum(policy.token_log_probs(params), axis=-1)
    ends = exactness.measure(log_probs, problem, None, 0)
    return ends["entropy"] + 1.7 * ends["reward"] - 0.6 * ends["coherence"]

  found, expected = (jax.flatten_util.ravel_pytree(jax.jit(jax.grad(f))(problem.params))[0] for f in (loss, lagrangian))
  np.testing.assert_allclose(found * (1 + 1.7 + 0.6), -expected, atol=1e-6)


def test_responses_are_drawn_by_their_probabilities():
  log_probs = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
  drawn = draw_responses(jax.random.key(0), log_probs, 40_000)
  shares = np.bincount(drawn, minlength=4) / 40_000
  np.testing.assert_allclose(shares, jnp.exp(log_probs), atol=0.01)


@pytest.mark.slow
def test_the_pi_controllers_lead_over_problems_is_what_the_figure_says():
  stored = json.loads((FIGURES / "controllers_over_problems.json").read_text(encoding="utf-8"))
  study = controllers_over_problems
  problems = study.random_problems(table_policy(), "qempo", study.SEEDS)
  for result in stored["results"]:
    found = {}
    for name in ("PI", "plain ascent, tuned"):
      gains = tuple(result[name][k] for k in ("proportional_gain", "integral_gain", "smoothing"))
      (found[name],) = study.outcomes(problems, [gains], result["noise_sd"])
    ratios = study.ratios(found["PI"], found["plain ascent, tuned"])
    assert ratios["median_settling_ratio"] < 1 / 2 and ratios["median_overshoot_ratio"] < 1 / 3
    for key in ("under_half_the_steps", "under_a_third_of_the_overshoot", "both"):
      assert abs(ratios[key] - result["PI / plain ascent, tuned"][key]) <= 1  # rounding on other machines


@pytest.mark.slow
def test_the_optimum_of_qempo_c_is_within_the_transformers_reach():
  """Fitted to it by maximum likelihood, on problems whose runs lost a response."""
  policy, seeds = KINDS["transformer"](), (106, 107, 108)
  problems = random_problems(policy, "qempo_c", seeds)
  with jax.enable_x64(True):
    wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), problems)
    solve = lambda p: exact.solve_qempo_coherent(
      p.rewards, jax.nn.log_softmax(p.ref_log_probs), min_reward=p.min_reward, threshold=THRESHOLD, nu=1.0
    )
    targets = jnp.asarray(jax.vmap(solve)(wide).log_probs, jnp.float32)

  @jax.vmap
  def fitted(params, target):
    kl = lambda p: jnp.mean(jnp.sum(jnp.exp(target) * (target - jnp.sum(policy.token_log_probs(p), -1)), -1))
    adam = optax.adam(optax.cosine_decay_schedule(0.005, 6000, alpha=0.01))

    def step(carry, _):
      updates, state = adam.update(jax.grad(kl)(carry[0]), carry[1])
      return (optax.apply_updates(carry[0], updates), state), None

    return kl(jax.lax.scan(step, (params, adam.init(params)), None, 6000)[0][0])

  assert jax.jit(fitted)(problems.params, targets).max() < 1e-4
