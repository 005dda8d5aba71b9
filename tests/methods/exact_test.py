"""Constraints and methods, these and a user's own, trained by the exact gradient: they end at the exact optimum.

Every response is in the group, with importance weights pi(y) N against a uniform behaviour policy, so a group's sums are
expectations. The optimum comes from SciPy: the minimum over multipliers of log sum_y exp(sum_i sense_i m_i v_i) - m . bounds.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

from qempo_jax import constraints
from qempo_jax import duals
from qempo_jax import exact
from qempo_jax import methods
from qempo_jax.errors import InputError
from qempo_jax.methods.setpo import setpo_rewards
from qempo_jax.testing.enumerable import EnumerablePolicy
from qempo_jax.token_stats import TokenStats
from qempo_jax.train import online_step
from qempo_jax.train import state as train_state

POLICY = EnumerablePolicy.table(vocab_size=3, max_length=3)
SIZE = len(POLICY.space.lengths)
REF = np.log(np.random.default_rng(5).dirichlet(np.ones(SIZE)))


def rewards(seed=0):
  """Two rewards of every response that pull against each other."""
  rng = np.random.default_rng(seed)
  first = rng.uniform(size=SIZE)
  return {"reward": first, "polite": 0.6 * (1 - first) + 0.4 * rng.uniform(size=SIZE)}


def solve(values, bounds, senses):
  """Multipliers and optimal distribution of max H s.t. sense_i E[v_i] >= sense_i bound_i."""
  signed, limits = np.stack(values, axis=1) * senses, np.asarray(bounds) * senses

  def dual(multipliers):
    logits = signed @ multipliers
    weights = np.exp(logits - logits.max())
    mean = signed.T @ weights / weights.sum()
    return np.log(weights.sum()) + logits.max() - multipliers @ limits, mean - limits

  found = scipy.optimize.minimize(dual, np.ones(len(limits)), jac=True, bounds=[(0, None)] * len(limits), tol=1e-13)
  weights = np.exp(signed @ found.x - (signed @ found.x).max())
  return found.x, weights / weights.sum()


def exact_optimum(logits):
  """softmax."""
  weights = np.exp(logits - logits.max())
  return weights / weights.sum()


def train(scores, bounds, method, starts, steps=1500, gains=None):
  """Parameters and multipliers after joint training by `online_step.policy_and_duals`."""
  everything = np.ones((1, SIZE), bool)
  batch = online_step.GroupBatch(
    None, jnp.asarray(POLICY.space.mask)[None], {name: jnp.asarray(r)[None] for name, r in scores.items()},
    everything, ~everything, behaviour_log_probs=jnp.full((1, SIZE), -np.log(SIZE)),
  )  # fmt: skip
  optimizers = online_step.Optimizers(
    optax.adam(optax.cosine_decay_schedule(0.1, steps, 1e-3)),
    duals.pi_controller(**gains or dict(proportional_gain=10.0, integral_gain=1.0)),
  )
  state = train_state.create(
    jnp.zeros_like(POLICY.init(jax.random.key(0))), duals.init_dual_params(starts), jax.random.key(0),
    optimizer=optimizers.policy, dual_optimizer=optimizers.dual,
  )  # fmt: skip
  objective = online_step.OnlineObjective(method, bounds, replay_weight=0.0, averaging=0.9)
  score = lambda params, _: TokenStats(
    *(x[None] for x in (POLICY.token_log_probs(params), POLICY.token_entropies(params)))
  )
  step = lambda state, _: online_step.policy_and_duals(
    state, batch, jnp.asarray(REF)[None], score=score, objective=objective, optimizers=optimizers
  )
  state, metrics = jax.jit(lambda s: jax.lax.scan(step, s, None, steps))(state)
  policy = np.exp(np.asarray(POLICY.log_probs(state.params), np.float64))
  return policy, duals.multipliers(state.dual_params), jax.tree.map(lambda x: x[-1], metrics)


def test_two_floors_and_a_length_budget_get_their_kkt_multipliers():
  scores, lengths = rewards(), np.asarray(POLICY.space.mask).sum(-1).astype(float)
  target = np.exp(4.0 * scores["reward"] + 7.0 * scores["polite"] - 0.5 * lengths)
  target /= target.sum()
  bounds = [target @ scores["reward"], target @ scores["polite"], target @ lengths]
  wanted, best = solve([*scores.values(), lengths], bounds, [1, 1, -1])
  np.testing.assert_allclose(wanted, [4.0, 7.0, 0.5], rtol=1e-3)  # by construction
  enforced = {
    "quality": constraints.reward_floor("reward", bounds[0]),
    "polite": constraints.reward_floor("polite", bounds[1]),
    "length": constraints.length_budget(bounds[2]),
  }
  policy, found, metrics = train(scores, enforced, methods.qempo(), dict.fromkeys(enforced, 1.0))
  np.testing.assert_allclose(policy, best, atol=0.01)
  np.testing.assert_allclose([found[name] for name in enforced], wanted, rtol=0.02, atol=0.01)
  np.testing.assert_allclose(metrics["dual/length/value"], bounds[2], atol=0.02)
  assert metrics["dual/length/bound"] == np.float32(bounds[2])


@pytest.mark.parametrize("learned", [False, True])
def test_qempo_c_ends_at_its_exact_optimum(learned):
  scores = {"reward": (rewards()["reward"] > 0.6).astype(float)}
  best = exact.solve_qempo_coherent(scores["reward"], REF, min_reward=0.95, threshold=1.0)
  distribution = np.exp(best.log_probs)
  spent = distribution @ np.where(scores["reward"] < 1, -REF, 0)
  enforced = {
    "quality": constraints.reward_floor("reward", 0.95),
    "coherence": constraints.coherence_budget(spent if learned else None, 1.0),
  }
  starts = {"quality": 1.0, "coherence": 0.5 if learned else 1.0}
  policy, found, _ = train(scores, enforced, methods.qempo_c(), starts, steps=2500)
  np.testing.assert_allclose(policy, distribution, atol=0.01)
  np.testing.assert_allclose(found["quality"], best.quality_multiplier, rtol=0.05, atol=0.05)
  np.testing.assert_allclose(found["coherence"], 1.0, rtol=0.2 if learned else 0)


@pytest.mark.parametrize("target", [1.9, 2.5])
def test_entropy_is_held_at_a_target_from_either_side(target):
  reward, beta = rewards()["reward"], 0.5
  optimum = lambda m: exact_optimum((reward + beta * REF) / (beta + m))
  entropy = lambda m: -optimum(m) @ np.log(optimum(m))
  wanted = scipy.optimize.brentq(lambda m: entropy(m) - target, 0.01 - beta, 10.0)
  assert (wanted > 0) == (target > entropy(0.0))  # the floor acts on one case, the budget on the other
  bounds = {
    "quality": constraints.reward_floor("reward", None),
    "kl": constraints.kl_budget(None),
    "entropy": constraints.entropy_floor(target),
    "entropy_budget": constraints.entropy_budget(target),
  }
  method = dataclasses.replace(methods.grpo(beta=beta), scale=methods.Method().scale)
  starts = {"quality": 1.0, "kl": beta, "entropy": 0.0, "entropy_budget": 0.0}
  gains = dict(proportional_gain=0.0, integral_gain=0.02)
  policy, found, metrics = train({"reward": reward}, bounds, method, starts, gains=gains)
  np.testing.assert_allclose(policy, optimum(wanted), atol=0.01)
  np.testing.assert_allclose(found["entropy"] - found["entropy_budget"], wanted, rtol=0.05, atol=0.005)
  np.testing.assert_allclose(metrics["entropy"], target, atol=0.02)


def first_token_budget(bound):
  """A user's own constraint: how often a response starts with token 1."""
  starts = jnp.asarray(np.asarray(POLICY.space.tokens)[:, 0] == 1, jnp.float32)
  return constraints.Constraint(lambda group: starts, bound, constraints.BUDGET)


def halved(*, share):
  """A user's own method: QEMPO on a share of the reward, with the whole group's mean as baseline."""
  base = lambda x, mask: x - jnp.mean(x)
  return methods.Method(baseline=base, rewards=lambda group, terms: share * terms.rewards)


def test_a_method_and_a_constraint_of_the_users_own_file():
  scores = rewards()
  method = methods.resolve(f"{__name__}.halved(share=0.5)")
  assert method.name == f"{__name__}.halved(share=0.5)"
  starts = (np.asarray(POLICY.space.tokens)[:, 0] == 1).astype(float)
  bounds = [0.6, 0.2]
  wanted, best = solve([scores["reward"], starts], bounds, [1, -1])
  enforced = {"quality": constraints.reward_floor("reward", bounds[0]), "start": first_token_budget(bounds[1])}
  policy, found, _ = train({"reward": scores["reward"]}, enforced, method, {"quality": 2.0, "start": 1.0})
  np.testing.assert_allclose(policy, best, atol=0.01)
  np.testing.assert_allclose([found["quality"] * 0.5, found["start"]], wanted, rtol=0.05, atol=0.05)


def test_measured_means_leave_out_what_was_not_scored_and_weight_the_rest():
  nan = np.nan
  group = constraints.Group(
    {"reward": jnp.array([[1.0, nan, 3.0, 9.0], [nan] * 4])}, -jnp.ones((2, 4)), jnp.ones((2, 4, 2), bool),
    jnp.array([[True, True, True, False]] * 2), jnp.zeros((2, 4), bool), jnp.array([[0.5, 1.0, 1.5, 1.0]] * 2),
  )  # fmt: skip
  found = constraints.measure(
    {"quality": constraints.reward_floor("reward", 0.5), "kl": constraints.kl_budget(2.0)}, group, jnp.zeros((2, 4))
  )
  np.testing.assert_allclose([found["quality"], found["kl"]], [2.5, 1.0], rtol=1e-6)
  short = constraints.shortfall(
    {"quality": constraints.reward_floor("reward", 3.0), "kl": constraints.kl_budget(0.25)}, found
  )
  np.testing.assert_allclose([short["quality"], short["kl"]], [0.5, 0.75], rtol=1e-6)
  nothing = constraints.measure(
    {"quality": constraints.reward_floor("reward", 0.5)}, jax.tree.map(lambda x: x[1:], group), jnp.zeros((1, 4))
  )
  assert np.isnan(nothing["quality"])
  filled = constraints.fill_unscored(jnp.array([1.0, nan, 0.5, 9.0]), jnp.array([True, True, True, False]))
  np.testing.assert_allclose(filled, [1.0, 0.75, 0.5, 9.0])


def test_setpo_adds_its_credit_and_the_bonus_pushes_token_entropies_up():
  rng = np.random.default_rng(0)
  tokens, mask = rng.integers(1, 4, (5, 3)), np.ones((5, 3), bool)
  method = methods.setpo(weight=2.0)
  group = constraints.Group(
    {"reward": jnp.array([1.0, 1.0, 0.2, 0.0, 1.0])}, jnp.asarray(rng.normal(-3, 1, 5)), jnp.asarray(mask),
    jnp.ones(5, bool), jnp.zeros(5, bool), jnp.ones(5), {n: jnp.asarray(x) for n, x in method.features(tokens, mask).items()},
  )  # fmt: skip
  log_probs = jnp.log(jnp.asarray(rng.uniform(0.2, 0.8, (5, 3))))
  bounds = {"quality": constraints.reward_floor("reward", None), "kl": constraints.kl_budget(None)}
  loss = lambda lp, entropy, method: methods.group_loss(
    TokenStats(lp, entropy), group, methods.Prices(0.0, {"quality": 4.0, "kl": 1.0}), bounds, method, replay_weight=0.0
  )
  advantages = lambda method: -5 * jax.grad(loss)(log_probs, jnp.zeros((5, 3)), method)[:, 0]
  changed = advantages(method) - advantages(methods.grpo(beta=0.04))
  credit = setpo_rewards(group.features["similarities"])
  np.testing.assert_allclose(changed, 2 * np.asarray(credit), rtol=1e-3, atol=1e-4)
  bonus = methods.grpo(beta=0.04, token_entropy_weight=0.5)
  np.testing.assert_allclose(jax.grad(loss, argnums=1)(log_probs, jnp.ones((5, 3)), bonus), -0.5 / 5, rtol=1e-5)


def test_what_padding_holds_does_not_matter():
  rng = np.random.default_rng(1)
  mask = np.arange(4) < rng.integers(1, 4, 5)[:, None]
  group = constraints.Group.on_policy(
    {"reward": jnp.asarray(rng.random(5))}, jnp.asarray(mask), jnp.asarray(rng.normal(-3, 1, 5))
  )
  bounds = {"quality": constraints.reward_floor("reward", 0.5), "kl": constraints.kl_budget(1.0)}
  values = [rng.normal(-1, 0.3, mask.shape) for _ in range(2)]

  def loss(padding, method):
    stats = TokenStats(*(jnp.where(mask, x, padding) for x in values))
    prices = methods.Prices(1.0, {"quality": 2.0, "kl": 0.5})
    call = lambda stats: methods.group_loss(stats, group, prices, bounds, method, replay_weight=1.0)
    value, gradient = jax.value_and_grad(call)(stats)
    return np.concatenate([np.ravel(value), *(np.ravel(x[mask]) for x in gradient)])

  for method in (
    methods.qempo(),
    methods.qempo_kl(entropy_gradient="rao_blackwell"),
    methods.grpo(beta=0.1, token_entropy_weight=0.2),
  ):
    zero = loss(0.0, method)
    assert np.abs(zero).max() > 0
    for padding in (-7.0, np.nan, np.inf):
      np.testing.assert_allclose(loss(padding, method), zero, rtol=1e-5, atol=1e-6)


def test_token_similarities_by_hand():
  tokens = np.array([[1, 2, 9], [1, 2, 9], [2, 1, 9], [3, 3, 9], [0, 0, 0]])
  mask = np.array([[1, 1, 0]] * 4 + [[0, 0, 0]], bool)
  found = methods.setpo(weight=1.0).features(tokens, mask)["similarities"]
  # (1, 2): tokens 1 and 2 and the pair 12, of norm sqrt 3; (2, 1) shares the tokens alone.
  np.testing.assert_allclose(found[0], [1, 1, 2 / 3, 0, 0], atol=1e-6)
  np.testing.assert_allclose(found[3], [0, 0, 0, 1, 0], atol=1e-6)
  assert found[4, 4] == 0


@pytest.mark.parametrize(
  ("text", "named"),
  [
    ("banana", "no method 'banana'"),
    ("ucpo(tau=two)", "cannot be read"),
    ("ucpo()", "tau"),
    ("grpo(beta=0.1, gamma=2)", "gamma"),
    ("spl(alpha=1.0, beta=1.0)", "cannot be made"),
    ("os.path.join('a')", "must return a qempo_jax.methods.Method"),
    ("no_such_package.method", "cannot be imported"),
    ("qempo(entropy_gradient='exact')", "settings"),
  ],
)
def test_a_method_that_cannot_be_is_said_in_one_line(text, named):
  with pytest.raises(InputError, match=named.replace("(", r"\(")) as caught:
    methods.resolve(text)
  assert "\n" not in str(caught.value)


def test_a_constraint_without_a_multiplier_or_a_sense_is_named():
  with pytest.raises(ValueError, match="sense"):
    dataclasses.replace(constraints.kl_budget(1.0), sense=2)
  group = constraints.Group(
    {}, jnp.zeros(2), jnp.ones((2, 1), bool), jnp.ones(2, bool), jnp.zeros(2, bool), jnp.ones(2)
  )
  stats = TokenStats(jnp.zeros((2, 1)), jnp.zeros((2, 1)))
  call = functools.partial(methods.group_loss, stats, group, replay_weight=0.0)
  with pytest.raises(AssertionError, match="no multiplier for constraint 'kl'"):
    call(methods.Prices(1.0, {}), {"kl": constraints.kl_budget(1.0)}, methods.qempo())
