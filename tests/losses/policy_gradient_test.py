"""Policy-gradient losses, besides the checks of `battery_test`: on-policy, clipping, long sums, shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax import losses

CLIP = dict(clip_low=0.2, clip_high=0.3)


def _trajectory(seed, length=5, total=7):
  rng = np.random.default_rng(seed)
  new = -rng.exponential(1.0, total)
  return new, new + 0.3 * rng.normal(size=total), rng.normal(), np.arange(total) < length


def test_on_policy_gradients_are_one_up_to_normalisation():
  new, _, advantage, mask = _trajectory(4)
  new = jnp.float32(new)
  gradient = lambda name, **hyper: jax.grad(getattr(losses, name))(new, new, advantage, mask, **hyper)
  plain = jax.grad(losses.policy_gradient_loss)(new, advantage, mask)
  np.testing.assert_allclose(gradient("ppo_clip_loss", **CLIP), plain, rtol=1e-6)
  np.testing.assert_allclose(gradient("sequence_clip_loss", **CLIP), plain, rtol=1e-6)
  np.testing.assert_allclose(gradient("grpo_loss", **CLIP), plain / 5, rtol=1e-6)
  np.testing.assert_allclose(gradient("gspo_loss", **CLIP), plain / 5, rtol=1e-6)
  np.testing.assert_allclose(gradient("dr_grpo_loss", **CLIP, max_tokens=8), plain / 8, rtol=1e-6)


def test_asymmetric_bounds_cut_each_side_where_they_say():
  loss = lambda x, a: losses.ppo_clip_loss(x, jnp.zeros(1), a, jnp.ones(1), **CLIP)
  gradient = lambda rho, a: jax.grad(loss)(jnp.log(jnp.array([rho])), a)
  assert gradient(1.29, 1.0) < 0 and gradient(1.31, 1.0) == 0
  assert gradient(0.81, -1.0) > 0 and gradient(0.79, -1.0) == 0
  assert gradient(1.31, -1.0) > 0 and gradient(0.79, 1.0) < 0  # the pessimistic side is never cut


@pytest.mark.parametrize("bad", [(3, 4, 4, 4), (4, 3, 4, 4), (4, 4, 3, 4), (4, 4, 4, 3)])
def test_shapes_must_fit(bad):
  with pytest.raises(AssertionError):
    losses.ppo_clip_loss(*(jnp.ones(n) for n in bad), **CLIP)
