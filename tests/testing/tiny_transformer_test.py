"""The tiny transformer as an enumerable policy: the tree of prefixes is scored as each response alone would be."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax.models import transformer
from qempo_jax.testing import EnumerablePolicy
from qempo_jax.testing import tiny_transformer


@pytest.mark.parametrize("prompt", [pytest.param((0,), marks=pytest.mark.slow), (0, 2, 1)])
def test_the_tree_scores_every_response_as_alone(prompt):
  policy = EnumerablePolicy.transformer(3, 4, prompt=prompt)
  params = policy.init(jax.random.key(0))
  found = np.asarray(jax.jit(policy.token_log_probs)(params))
  config = tiny_transformer.tiny_config(3, width=16, num_layers=2)
  width = len(prompt) + policy.space.max_length - 1

  @jax.jit
  def next_log_probs(fed):
    positions = jnp.arange(width)[None]
    sees = transformer.causal_mask(positions, jnp.ones((1, width), bool))
    hidden = transformer.forward(params, config, fed[None], positions, sees)[0]
    return jax.nn.log_softmax(hidden @ transformer.unembedding(params).T)

  for response, mask, row in zip(policy.space.tokens, policy.space.mask, found, strict=True):
    response = response[mask]
    fed = np.array([*prompt, *response[:-1]])  # and then places that nothing before them sees
    log_probs = np.asarray(next_log_probs(np.pad(fed, (0, width - len(fed)))))
    alone = log_probs[len(prompt) - 1 + np.arange(len(response)), response]
    np.testing.assert_allclose(row[mask], alone, atol=2e-5)
    assert not np.any(row[~mask])


def test_probabilities_sum_to_one_and_gradients_are_finite():
  policy = EnumerablePolicy.transformer(4, 3, width=8, num_layers=1)
  params = policy.init(jax.random.key(1))
  np.testing.assert_allclose(np.exp(jax.jit(policy.log_probs)(params)).sum(), 1, rtol=1e-5)
  gradient = jax.jit(jax.grad(policy.entropy))(params)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
  assert any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_prompts_share_params_and_may_be_mapped_over():
  prompts = jnp.array([(0, 1), (0, 2)])
  answer = lambda prompt: EnumerablePolicy.transformer(3, 3, prompt=prompt)
  params = answer(prompts[0]).init(jax.random.key(2))
  mapped = jax.jit(jax.vmap(lambda prompt: answer(prompt).token_log_probs(params)))(prompts)
  alone = jax.jit(lambda prompt: answer(prompt).token_log_probs(params))
  each = [alone(prompt) for prompt in prompts]
  np.testing.assert_allclose(mapped, jnp.stack(each), atol=1e-5)
  assert np.abs(mapped[0] - mapped[1]).max() > 0.01


def test_a_prompt_of_the_repeated_token_alone_hides_its_number():
  """Why a prompt should open with another token: attention averages, and a mean of equals forgets their number."""
  blind, seeing = (EnumerablePolicy.transformer(3, 3, prompt=prompt, init_stddev=1.0) for prompt in ((1,), (0, 1)))
  params = blind.init(jax.random.key(3))
  spread = lambda policy: np.ptp(_log_probs_of_stopping(policy, params))
  assert spread(blind) < 1e-4 < 1e-2 < spread(seeing)


def _log_probs_of_stopping(policy, params):
  """Log-prob of EOS after no, one and two tokens 1."""
  log_p, space = np.asarray(jax.jit(policy.token_log_probs)(params)), policy.space
  rows = {tuple(t[m]): i for i, (t, m) in enumerate(zip(space.tokens, space.mask, strict=True))}
  return [log_p[rows[(1,) * n + (0,)], n] for n in range(3)]


def test_the_package_still_loads_no_models():
  program = "import sys, qempo_jax; print(*[m for m in sys.modules if m.startswith('qempo_jax.models')])"
  loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
  assert not loaded.stdout.split()
