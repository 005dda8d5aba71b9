"""Entropy and KL estimators, unbiased or biased exactly as they say: every sequence is enumerated."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax import estimators
from qempo_jax.testing import EnumerablePolicy
from qempo_jax.testing import sequence_space
from qempo_jax.testing import space_of_sequences

POLICIES = {
  "table": EnumerablePolicy.table(vocab_size=3, max_length=4),  # 31 sequences
  "mlp": EnumerablePolicy.mlp(vocab_size=3, max_length=3, width=4),
}


def _mean(policy, surrogates):
  """Means over samples of the policy, [K]; differentiating them leaves the weights alone."""

  def means(params):
    weights = jax.lax.stop_gradient(jnp.exp(policy.log_probs(params)))
    return jnp.stack([jnp.sum(weights * surrogate(params)) for surrogate in surrogates])

  return means


def _gradients(f, params):
  """[K, D] gradients of a function with K values."""
  flat, unravel = jax.flatten_util.ravel_pytree(params)
  return jax.jit(jax.jacrev(lambda x: f(unravel(x))))(flat)


def _mean_gradient(policy, params, surrogate):
  return _gradients(_mean(policy, [surrogate]), params)[0]


def _exact_gradient(f, params):
  return jax.flatten_util.ravel_pytree(jax.jit(jax.grad(f))(params))[0]


def _rows(policy, params, estimator, *token_arrays, **hyper):
  rows = jax.vmap(lambda *x: estimator(*x, **hyper))
  return rows(policy.token_log_probs(params), *token_arrays, jnp.asarray(policy.space.mask))


def _entropy_surrogates(policy):
  return {
    "rao_blackwell": lambda p: _rows(policy, p, estimators.sequence_entropy_surrogate, policy.token_entropies(p)),
    "score": lambda p: _rows(policy, p, estimators.score_function_entropy_surrogate, baseline=0.0),
    "baseline": lambda p: _rows(policy, p, estimators.score_function_entropy_surrogate, baseline=-2.0),
    "to_go": lambda p: _rows(policy, p, estimators.reward_to_go_entropy_surrogate),
    "one_number": lambda p: _rows(
      policy, p, estimators.sequence_entropy_surrogate, policy.token_entropies(p), baseline=0.6
    ),
    "by_position": lambda p: _rows(
      policy, p, estimators.sequence_entropy_surrogate, policy.token_entropies(p), baseline=_slope(policy)
    ),
  }


def _slope(policy):
  """Some baseline at each position."""
  return jnp.linspace(1.0, -0.5, policy.space.mask.shape[1])


def _assert_unbiased(policy, params, surrogates, exact):
  means = _mean(policy, surrogates)
  np.testing.assert_allclose(jax.jit(means)(params), [jax.jit(exact)(params)] * len(surrogates), rtol=1e-10)
  for gradient in _gradients(means, params):
    np.testing.assert_allclose(gradient, _exact_gradient(exact, params), atol=1e-6)


@pytest.mark.parametrize("name", ["table", pytest.param("mlp", marks=pytest.mark.slow)])
def test_entropy_surrogates_are_unbiased_in_value_and_gradient(x64, name):
  policy = POLICIES[name]
  surrogates = list(_entropy_surrogates(policy).values())
  _assert_unbiased(policy, policy.init(jax.random.key(0)), surrogates, policy.entropy)


@pytest.mark.parametrize("name", ["table", pytest.param("mlp", marks=pytest.mark.slow)])
def test_kl_surrogates_are_unbiased_in_value_and_gradient(x64, name):
  policy = POLICIES[name]
  params, ref_params = (policy.init(jax.random.key(seed)) for seed in (0, 1))
  ref = policy.token_log_probs(ref_params)
  score = estimators.score_function_kl_surrogate
  surrogates = [
    lambda p: _rows(policy, p, estimators.sequence_kl_surrogate, policy.token_kls(p, ref)),
    lambda p: _rows(policy, p, score, ref, baseline=0.0),
    lambda p: _rows(policy, p, score, ref, baseline=0.7),
    *(
      lambda p, b=b: _rows(policy, p, estimators.sequence_kl_surrogate, policy.token_kls(p, ref), baseline=b)
      for b in (0.6, _slope(policy))
    ),
  ]
  _assert_unbiased(policy, params, surrogates, lambda p: policy.kl(p, policy.log_probs(ref_params)))


def test_rao_blackwell_has_the_least_variance_here(x64):
  policy = POLICIES["table"]

  @jax.jit
  def variances(params):
    weights = jnp.exp(policy.log_probs(params))

    def variance(surrogate):
      gradients = jax.jacobian(surrogate)(params)
      mean = jnp.tensordot(weights, gradients, axes=1)
      return jnp.tensordot(weights, jnp.sum((gradients - mean) ** 2, axis=(1, 2)), axes=1)

    return {name: variance(surrogate) for name, surrogate in _entropy_surrogates(policy).items()}

  for seed in range(3):
    found = variances(policy.init(jax.random.key(seed)))
    del found["one_number"], found["by_position"]  # the same estimator with arbitrary baselines
    assert min(found, key=found.get) == "rao_blackwell"


@pytest.mark.parametrize("target", ["entropy", pytest.param("kl", marks=pytest.mark.slow)])
def test_leave_one_out_over_all_groups_of_three_is_unbiased_and_quiets_the_entropy(x64, target):
  policy = POLICIES["mlp"]  # 15 sequences
  params, ref_params = (policy.init(jax.random.key(seed)) for seed in (0, 1))
  flat, unravel = jax.flatten_util.ravel_pytree(params)
  mask, ref = jnp.asarray(policy.space.mask), policy.token_log_probs(ref_params)
  if target == "entropy":
    values, surrogate, exact = policy.token_entropies, estimators.sequence_entropy_surrogate, policy.entropy
  else:
    values = lambda p: policy.token_kls(p, ref)
    surrogate = estimators.sequence_kl_surrogate
    exact = lambda p: policy.kl(p, policy.log_probs(ref_params))
  n = policy.space.num_sequences
  groups = jnp.asarray(np.indices((n, n, n)).reshape(3, -1).T)

  def group_means(x, with_baseline):
    log_probs, found = policy.token_log_probs(unravel(x)), values(unravel(x))

    def mean(group):
      to_go = estimators.leave_one_out_to_go(found[group], mask[group])
      baseline = to_go if with_baseline else jnp.zeros_like(to_go)
      rows = jax.vmap(lambda a, b, c, d: surrogate(a, b, c, baseline=d))
      return jnp.mean(rows(log_probs[group], found[group], mask[group], baseline))

    return jax.vmap(mean)(groups)

  weights = jnp.exp(jnp.sum(policy.log_probs(params)[groups], axis=1))
  wanted = jax.grad(lambda x: exact(unravel(x)))(flat)
  spread = {}
  for with_baseline in (False, True):
    gradients = jax.jit(jax.jacfwd(lambda x, b=with_baseline: group_means(x, b)))(flat)
    mean = weights @ gradients
    np.testing.assert_allclose(mean, wanted, atol=1e-6)
    spread[with_baseline] = float(weights @ jnp.sum((gradients - mean) ** 2, axis=1))
  if target == "entropy":  # the KL gains little, and only in larger groups
    assert spread[True] < 0.9 * spread[False]


def test_leave_one_out_to_go_by_hand():
  # To come after each position: (5, 3, 0), (4, 0, -), (-); the last row is no sample, and its junk no number.
  values = jnp.array([[1.0, 2, 3], [5, 4, jnp.nan], [jnp.inf] * 3])
  mask = jnp.array([[1, 1, 1], [1, 1, 0], [0, 0, 0]])
  found = estimators.leave_one_out_to_go(values, mask)
  np.testing.assert_allclose(found[:2], [[4, 0, 0], [5, 3, 0]], atol=1e-6)
  assert np.all(np.isfinite(found))
  np.testing.assert_array_equal(estimators.leave_one_out_to_go(values[:1], mask[:1]), np.zeros((1, 3)))
  detached = jax.grad(lambda x: jnp.sum(estimators.leave_one_out_to_go(x, jnp.ones((3, 3)))))
  np.testing.assert_array_equal(detached(jnp.ones((3, 3))), np.zeros((3, 3)))
  with pytest.raises(AssertionError):
    estimators.leave_one_out_to_go(values, mask[:2])


def test_a_baseline_changes_the_gradient_alone_and_must_fit():
  log_probs, entropies, mask = jnp.array([-1.0, -2.0, 9.0]), jnp.array([0.5, 0.3, 7.0]), jnp.array([1, 1, 0])
  surrogate = jax.value_and_grad(estimators.sequence_entropy_surrogate)
  for baseline, want in [(0.2, [0.1, -0.2, 0]), (jnp.array([0.1, 0.2, jnp.nan]), [0.2, -0.2, 0])]:
    value, gradient = surrogate(log_probs, entropies, mask, baseline=baseline)
    np.testing.assert_allclose(value, 0.8, rtol=1e-6)
    np.testing.assert_allclose(gradient, want, atol=1e-6)
  with pytest.raises(AssertionError):
    surrogate(log_probs, entropies, mask, baseline=jnp.ones(2))


def test_token_only_entropy_is_right_in_value_and_biased_in_gradient(x64):
  policy = POLICIES["table"]
  params, mask = policy.init(jax.random.key(0)), jnp.asarray(policy.space.mask)
  surrogate = lambda p: jax.vmap(estimators.token_only_entropy_surrogate)(policy.token_entropies(p), mask)
  np.testing.assert_allclose(policy.expected(params, surrogate(params)), policy.entropy(params), rtol=1e-10)
  bias = _mean_gradient(policy, params, surrogate) - _exact_gradient(policy.entropy, params)
  assert np.linalg.norm(bias) > 0.1


@pytest.mark.parametrize("leaves", [pytest.param(2, marks=pytest.mark.slow), 5])
def test_branch_where_the_token_bonus_pulls_to_a_half_and_entropy_to_the_optimum(x64, leaves):
  # Token 1 ends in the one leaf "1 EOS"; token 2 leads to M equiprobable leaves.
  space = space_of_sequences([(1, 0), *((2, 3 + m, 0) for m in range(leaves))], vocab_size=3 + leaves)

  def token_log_probs(logit):
    first = jnp.where(space.tokens[:, 0] == 1, jax.nn.log_sigmoid(-logit), jax.nn.log_sigmoid(logit))
    second = jnp.where(space.tokens[:, 0] == 1, 0.0, -jnp.log(leaves))
    return jnp.stack([first, second, jnp.zeros_like(first)], axis=1)

  policy = EnumerablePolicy(space, lambda key: jnp.zeros(()), token_log_probs)
  mask, logit = jnp.asarray(space.mask), lambda p: jnp.log(p / (1 - p))
  token_only = lambda x: jax.vmap(estimators.token_only_entropy_surrogate)(policy.token_entropies(x), mask)
  rao_blackwell = lambda x: _rows(policy, x, estimators.sequence_entropy_surrogate, policy.token_entropies(x))
  best = logit(leaves / (leaves + 1))
  np.testing.assert_allclose(_mean_gradient(policy, logit(0.5), token_only), 0, atol=1e-12)
  assert _mean_gradient(policy, best, token_only) < -1e-2  # away from the optimum
  np.testing.assert_allclose(_mean_gradient(policy, best, rao_blackwell), 0, atol=1e-12)
  np.testing.assert_allclose(policy.entropy(best), np.log(leaves + 1), rtol=1e-12)


def test_kl_values():
  k1, k2, k3 = estimators.kl_values(jnp.array([-1.0, -3.0]), jnp.array([-3.0, -1.0]))
  np.testing.assert_allclose(k1, [2, -2])
  np.testing.assert_allclose(k2, [2, 2])
  np.testing.assert_allclose(k3, [np.exp(-2) + 1, np.exp(2) - 3], rtol=1e-6)
  policy = POLICIES["table"]
  params, ref = policy.init(jax.random.key(0)), policy.log_probs(policy.init(jax.random.key(1)))
  for k in ("k1", "k3"):
    value = getattr(estimators.kl_values(policy.log_probs(params), ref), k)
    np.testing.assert_allclose(policy.expected(params, value), policy.kl(params, ref), rtol=1e-4)


def test_golden_by_hand():
  # value 0.5 + 0.3 + 0.1; gradient to log pi_t: entropies still to come.
  log_probs, entropies = jnp.array([-1.0, -2.0, -3.0, -9.0]), jnp.array([0.5, 0.3, 0.1, 7.0])
  mask = jnp.array([1, 1, 1, 0])
  surrogate = jax.value_and_grad(estimators.sequence_entropy_surrogate, argnums=(0, 1))
  value, gradient = surrogate(log_probs, entropies, mask)
  np.testing.assert_allclose(value, 0.9, rtol=1e-6)
  np.testing.assert_allclose(gradient[0], [0.4, 0.1, 0, 0], atol=1e-6)
  np.testing.assert_array_equal(gradient[1], [1, 1, 1, 0])
  to_go = jax.grad(estimators.reward_to_go_entropy_surrogate)(log_probs, mask)
  np.testing.assert_allclose(to_go, [6, 5, 3, 0])
  score = jax.grad(estimators.score_function_entropy_surrogate)(log_probs, mask, baseline=-1.0)
  np.testing.assert_allclose(score, [5, 5, 5, 0])


def test_padding_masks_and_half_precision():
  log_probs, entropies = jnp.array([-1.0, jnp.nan]), jnp.array([0.5, jnp.inf])
  value_and_grad = jax.value_and_grad(estimators.sequence_entropy_surrogate, argnums=(0, 1))
  for mask, want in [(jnp.array([True, False]), 0.5), (jnp.zeros(2), 0.0)]:
    value, gradients = value_and_grad(log_probs, entropies, mask)
    assert value == want and all(np.all(np.isfinite(g)) for g in gradients)
  half = jax.jit(estimators.sequence_entropy_surrogate)(*jnp.ones((3, 500), jnp.bfloat16))
  assert half.dtype == jnp.float32 and half == 500
  with pytest.raises(AssertionError):
    estimators.sequence_entropy_surrogate(log_probs, entropies[:1], jnp.ones(2))
  with pytest.raises(AssertionError):
    estimators.sequence_kl_surrogate(*jnp.ones((3, 2, 2)))


def test_table_and_mlp_share_a_space():
  assert sequence_space(3, 4) is POLICIES["table"].space
