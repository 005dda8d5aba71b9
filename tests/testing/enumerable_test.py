"""Enumerated policies: counts, probabilities, exact quantities against brute force."""

import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest

from qempo_jax import family
from qempo_jax.testing import EnumerablePolicy
from qempo_jax.testing import random_problem
from qempo_jax.testing import sequence_space
from qempo_jax.testing import space_of_sequences

POLICIES = [
  EnumerablePolicy.table(3, 3),
  EnumerablePolicy.mlp(3, 3, 5),
]


@pytest.mark.parametrize(("vocab_size", "max_length", "count"), [(3, 4, 31), (2, 3, 4), (4, 1, 4), (4, 3, 40)])
def test_the_space_holds_every_sequence_once(vocab_size, max_length, count):
  space = sequence_space(vocab_size, max_length)
  assert space.num_sequences == count
  assert len({tuple(t[:n]) for t, n in zip(space.tokens, space.lengths, strict=True)}) == count
  for tokens, n, truncated in zip(space.tokens, space.lengths, space.truncated, strict=True):
    assert np.all(tokens[: n - 1] != 0)
    assert (tokens[n - 1] != 0) == truncated and (not truncated or n == max_length)


@pytest.mark.parametrize("policy", POLICIES)
def test_probabilities_sum_to_one_at_every_prefix(x64, policy):
  params = policy.init(jax.random.key(0))
  np.testing.assert_allclose(jnp.exp(policy.log_probs(params)).sum(), 1, rtol=1e-12)
  sums = jnp.exp(policy.next_token_log_probs(params)).sum(-1)
  np.testing.assert_allclose(sums[policy.space.mask], 1, rtol=1e-12)
  np.testing.assert_allclose(policy.length_distribution(params).sum(), 1, rtol=1e-12)
  truncated = jnp.exp(policy.log_probs(params))[policy.space.truncated].sum()
  np.testing.assert_allclose(policy.truncation_rate(params), truncated, rtol=1e-12)


@pytest.mark.parametrize("policy", POLICIES)
def test_chain_rules_of_entropy_and_kl(x64, policy):
  params, ref = policy.init(jax.random.key(0)), policy.init(jax.random.key(1))
  ref_tokens, ref_log_probs = policy.token_log_probs(ref), policy.log_probs(ref)
  along = lambda tokens: policy.expected(params, tokens.sum(-1))
  np.testing.assert_allclose(along(policy.token_entropies(params)), policy.entropy(params), rtol=1e-12)
  np.testing.assert_allclose(along(policy.token_kls(params, ref_tokens)), policy.kl(params, ref_log_probs), rtol=1e-12)
  assert np.all(np.asarray(policy.token_entropies(params))[~policy.space.mask] == 0)
  np.testing.assert_allclose(policy.kl(ref, ref_log_probs), 0, atol=1e-14)


@pytest.mark.parametrize("policy", POLICIES)
def test_exact_gradients_match_finite_differences(x64, policy):
  params, ref = policy.init(jax.random.key(0)), policy.log_probs(policy.init(jax.random.key(1)))
  rewards = jax.random.normal(jax.random.key(2), ref.shape)
  objective = lambda p: policy.objective(p, rewards, ref, alpha=0.5, beta=0.2)
  check_grads(objective, (params,), order=1, modes=["rev"])
  gradient = policy.gradient(params, rewards, ref, alpha=0.5, beta=0.2)
  jax.tree.map(np.testing.assert_array_equal, gradient, jax.grad(objective)(params))


def test_objective_is_its_parts(x64):
  policy = POLICIES[0]
  params, ref = policy.init(jax.random.key(0)), policy.log_probs(policy.init(jax.random.key(1)))
  rewards = jax.random.normal(jax.random.key(2), ref.shape)
  parts = policy.expected(params, rewards) + (0.5 - 0.2) * policy.entropy(params) - 0.2 * policy.kl(params, ref)
  np.testing.assert_allclose(policy.objective(params, rewards, ref, alpha=0.5, beta=0.2), parts, rtol=1e-12)


def test_the_closed_form_is_the_maximum_of_the_objective(x64):
  problem = random_problem(jax.random.key(3), vocab_size=3, max_length=3, num_prompts=2, num_points=1)
  policy, rewards = problem.policy, problem.rewards[1]
  best = problem.optimum(rewards, alpha=0.5, beta=0.2)
  target = family.target_log_probs(rewards, problem.ref_log_probs, alpha=0.5, beta=0.2)
  np.testing.assert_allclose(policy.log_probs(best), target, atol=1e-12)
  gradient = policy.gradient(best, rewards, problem.ref_log_probs, alpha=0.5, beta=0.2)
  np.testing.assert_allclose(gradient, 0, atol=1e-12)


def test_any_token_log_probs_plug_in(x64):
  space = sequence_space(3, 3)
  table = EnumerablePolicy.table(3, 3)
  params = table.init(jax.random.key(0))

  def like_a_language_model(logits):  # padding may hold anything
    own = jax.nn.log_softmax(logits)[space.prefix, space.tokens]
    return jnp.where(space.mask, own, jnp.nan)

  policy = EnumerablePolicy(space, table.init, like_a_language_model)
  for f in ("entropy", "log_probs", "token_entropies", "length_distribution"):
    np.testing.assert_allclose(getattr(policy, f)(params), getattr(table, f)(params), rtol=1e-12)
  np.testing.assert_allclose(jax.grad(policy.entropy)(params), jax.grad(table.entropy)(params), rtol=1e-9, atol=1e-12)


def test_hand_picked_spaces_must_be_prefix_free():
  for bad in ([(1,), (1, 0)], [(1, 0), (1, 0)]):
    with pytest.raises(ValueError, match="distinct"):
      space_of_sequences(bad, vocab_size=2)


def test_works_jitted_in_single_precision():
  policy = POLICIES[1]
  params = policy.init(jax.random.key(0))
  np.testing.assert_allclose(jax.jit(policy.entropy)(params), policy.entropy(params), rtol=1e-5)
