"""docs/estimators.md says which gradient k1, k2 and k3 give; every cell of its table is checked."""

import json
import pathlib

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies import estimator_surrogates
from experiments.studies import estimator_variance
from qempo_jax import estimators
from qempo_jax.testing import EnumerablePolicy
from qempo_jax.testing import random_problem
from qempo_jax.testing.expectation import group_moments

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "estimators.md"
POLICIES = {
  "table": EnumerablePolicy.table(vocab_size=3, max_length=4),
  "mlp": EnumerablePolicy.mlp(vocab_size=3, max_length=3, width=4),
}
RIGHT = "grad KL(pi, q)"
TERMS = {f"{k} of the {what}": (k, what) for what in ("sequence", "tokens, summed") for k in ("k1", "k2", "k3")} | {
  "exact KL of the next tokens, summed": ("exact", "tokens, summed")
}
_sg = jax.lax.stop_gradient


def cells() -> list[tuple[str, str, str]]:
  """Returns (term, place, what the page says) for every cell of the page's table of gradients."""
  rows = [line.strip("| \n").split(" | ") for line in PAGE.read_text("utf-8").splitlines()]
  return [
    (row[0], place, said.strip("* "))
    for row in rows
    if row[0] in TERMS
    for place, said in zip(("loss", "reward"), row[1:], strict=True)
  ]


def estimate(policy: EnumerablePolicy, ref_params, term: str):
  """Returns the term, a function of params to [N] values, one a sequence."""
  k, what = TERMS[term]
  ref, mask = policy.token_log_probs(ref_params), jnp.asarray(policy.space.mask)
  value = lambda log_p, log_q: getattr(estimators.kl_values(log_p, log_q), k)
  if k == "exact":
    return lambda p: jnp.sum(policy.token_kls(p, ref), axis=-1)
  if what == "sequence":
    return lambda p: value(policy.log_probs(p), policy.log_probs(ref_params))
  return lambda p: jnp.sum(jnp.where(mask, value(policy.token_log_probs(p), ref), 0.0), axis=-1)


def placed(policy: EnumerablePolicy, term, place: str):
  """Returns a function of params whose gradient is the term's expected one, in the loss or in the reward."""
  if place == "loss":
    return lambda p: jnp.sum(_sg(jnp.exp(policy.log_probs(p))) * term(p))
  return lambda p: policy.expected(p, _sg(term(p)))


def named_gradients(policy: EnumerablePolicy, ref_params) -> dict:
  """Returns functions of params whose gradients the page's cells name, written out anew."""
  space = policy.space
  ref_tokens, ref = policy.token_log_probs(ref_params), policy.log_probs(ref_params)
  next_q = space.next_tokens(ref_tokens)
  zero_at = lambda keep, x: jnp.where(keep, x, 0.0)

  def local(p, forward: bool):
    """sum_t of the next-token KLs along paths of pi, how often each path is taken being held fixed."""
    log_p, keep = policy.next_token_log_probs(p), jnp.isfinite(next_q)
    gap = zero_at(keep, log_p) - zero_at(keep, next_q)
    weight, sign = (next_q, -1) if forward else (log_p, 1)
    kls = sign * jnp.sum(zero_at(keep, jnp.exp(zero_at(keep, weight)) * gap), axis=-1)
    return jnp.sum(_sg(jnp.exp(policy.log_probs(p))) * jnp.sum(kls, axis=-1))

  def mean_square(p):
    return policy.expected(p, (policy.log_probs(p) - ref) ** 2 / 2)

  def mean_token_squares(p):
    gap = zero_at(space.mask, policy.token_log_probs(p) - ref_tokens)
    return policy.expected(p, jnp.sum(gap**2, axis=-1) / 2)

  return {
    "0": lambda p: 0.0 * policy.entropy(p),
    "grad KL(pi, q)": lambda p: policy.expected(p, policy.log_probs(p) - ref),
    "grad KL(q, pi)": lambda p: jnp.sum(jnp.exp(ref) * (ref - policy.log_probs(p))),
    "local KL(pi, q)": lambda p: local(p, forward=False),
    "local KL(q, pi)": lambda p: local(p, forward=True),
    "grad E[k2]": mean_square,
    "grad E[sum k2]": mean_token_squares,
  }


def gradients(functions: dict, params) -> dict:
  """Gradients of scalar functions by name, each one vector; compiled together."""
  flat, unravel = jax.flatten_util.ravel_pytree(params)
  values = lambda x: jnp.stack([f(unravel(x)) for f in functions.values()])
  return dict(zip(functions, np.asarray(jax.jit(jax.jacrev(values))(flat)), strict=True))


def test_the_page_has_every_cell():
  assert sorted((term, place) for term, place, _ in cells()) == sorted(
    (term, place) for term in TERMS for place in ("loss", "reward")
  )


def test_the_pages_measured_tables_are_those_of_the_study():
  raw = json.loads((PAGE.parent / "figures" / "estimator_variance.json").read_text("utf-8"))
  assert estimator_variance.tables(raw) in PAGE.read_text("utf-8")


@pytest.mark.parametrize("name", ["table", pytest.param("mlp", marks=pytest.mark.slow)])
def test_every_cell_is_the_gradient_it_says(x64, name):
  policy = POLICIES[name]
  params, ref_params = (policy.init(jax.random.key(seed)) for seed in (0, 1))
  known = gradients(named_gradients(policy, ref_params), params)
  every = gradients(
    {(term, place): placed(policy, estimate(policy, ref_params, term), place) for term, place, _ in cells()},
    params,
  )
  size = np.linalg.norm(known[RIGHT])
  for term, place, said in cells():
    found = every[term, place]
    first, *subtracted = said.split(" - ")
    expected = known[first] - sum((known[part] for part in subtracted), np.zeros_like(found))
    np.testing.assert_allclose(found, expected, atol=1e-10 * size, err_msg=f"{term} in the {place}")
    if said != RIGHT:  # a cell that is not called right is far from right
      assert np.linalg.norm(found - known[RIGHT]) > 0.1 * size, f"{term} in the {place}"


@pytest.mark.parametrize("name", ["table", pytest.param("mlp", marks=pytest.mark.slow)])
def test_loss_and_reward_add_up_to_the_gradient_of_the_mean(x64, name):
  policy = POLICIES[name]
  params, ref_params = (policy.init(jax.random.key(seed)) for seed in (2, 3))
  functions = {}
  for term in TERMS:
    value = estimate(policy, ref_params, term)
    functions |= {(term, place): placed(policy, value, place) for place in ("loss", "reward")}
    functions[term, "mean"] = lambda p, value=value: policy.expected(p, value(p))
  found = gradients(functions, params)
  for term in TERMS:
    both = found[term, "loss"] + found[term, "reward"]
    np.testing.assert_allclose(both, found[term, "mean"], atol=1e-10)


def test_entropy_is_the_table_at_q_one(x64):
  policy = POLICIES["table"]
  params = policy.init(jax.random.key(0))
  surprise = lambda p: -policy.log_probs(p)
  half_square = lambda p: -(policy.log_probs(p) ** 2) / 2
  found = gradients(
    {
      "entropy": policy.entropy,
      "k1 in the loss": placed(policy, surprise, "loss"),
      "k1 in the reward": placed(policy, surprise, "reward"),
      "k2 in the loss": placed(policy, half_square, "loss"),
    },
    params,
  )
  close = lambda name, g: np.testing.assert_allclose(found[name], g, atol=1e-10)
  close("k1 in the loss", 0)
  close("k1 in the reward", found["entropy"])
  close("k2 in the loss", found["entropy"])


@pytest.mark.slow
def test_the_studys_variance_of_leave_one_out_extends_to_larger_groups(x64):
  problem = random_problem(jax.random.key(0), vocab_size=3, max_length=2, num_prompts=1, num_points=1)
  names = ("leave-one-out", "Rao-Blackwell, leave-one-out")
  losses = [estimator_surrogates.ascended(estimator_surrogates.ENTROPY[name]) for name in names]
  of_two, of_three, of_four = (
    group_moments(losses, problem, group_size=n, behaviour="policy")(problem.params[0]).variance for n in (2, 3, 4)
  )
  for two, three, four in zip(of_two, of_three, of_four, strict=True):
    predicted = estimator_variance.leave_one_out_variance(float(two), float(three), 4)
    np.testing.assert_allclose(predicted, four, rtol=1e-10)


def test_every_unbiased_estimator_of_the_study_is_unbiased(x64):
  problem = random_problem(jax.random.key(1), vocab_size=3, max_length=2, num_prompts=1, num_points=1)
  params, ref = problem.params[0], problem.ref_log_probs
  exact = gradients({"entropy": problem.policy.entropy, "KL": lambda p: problem.policy.kl(p, ref)}, params)
  for target, surrogates in estimator_surrogates.TARGETS.items():
    wanted = exact[target]
    losses = list(map(estimator_surrogates.ascended, surrogates.values()))
    means = group_moments(losses, problem, group_size=2, behaviour="policy")(params).mean
    for name, mean in zip(surrogates, means, strict=True):
      error = np.linalg.norm(mean - wanted) / np.linalg.norm(wanted)
      biased = name in estimator_surrogates.BIASED
      assert error > 0.01 if biased else error < 1e-10, (target, name)
