"""The fourth trap: E[r] after offline training, with fixed weights and with a measured multiplier."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from qempo_jax import duals
from qempo_jax import family
from qempo_jax import losses

OFFLINE_FLOOR, KL_MULTIPLIER = 0.8, 1.0
DECISIVENESS = (0.5, 1.0, 2.0)  # annotators prefer w to l with probability sigmoid(c (r_w - r_l))
STEPS, MEASURE_EVERY, SAMPLES, LEARNING_RATE = 4000, 10, 256, 0.02
CONTROLLER = {"proportional_gain": 0.5, "integral_gain": 0.2, "smoothing": 0.8}


def expected_pair_loss(logits, rewards, ref, multiplier, decisiveness):
  """The QEMPO-KL pair loss, averaged over all pairs from the reference and both labels."""
  log_probs = jax.nn.log_softmax(logits)
  loss = functools.partial(losses.qempo_kl_loss, quality_multiplier=multiplier, kl_multiplier=KL_MULTIPLIER)
  over_rejected = jax.vmap(loss, (None, 0, None, 0))
  table = jax.vmap(over_rejected, (0, None, 0, None))(log_probs, log_probs, ref, ref)
  pair_probs = jnp.exp(ref)[:, None] * jnp.exp(ref)
  preferred = jax.nn.sigmoid(decisiveness * (rewards[:, None] - rewards))
  # Divide by alpha^2, so that the rate of learning is the same for every multiplier.
  alpha = family.weights_from_multipliers(multiplier, KL_MULTIPLIER).alpha
  return jnp.sum(2 * pair_probs * preferred * table) / jnp.square(alpha)


@functools.partial(jax.jit, static_argnames="measured")
def train_offline(rewards, ref, dual_params, decisiveness, key, *, measured: bool):
  """Returns E[r] and the multiplier before every step of full-batch offline training from the reference.

  With `measured`, SAMPLES responses of the policy are scored every MEASURE_EVERY steps, and the library's PI
  controller moves the multiplier. Without it the multiplier is fixed.
  """
  optimizer, controller = optax.adam(LEARNING_RATE), duals.pi_controller(**CONTROLLER)

  def step(carry, at):
    logits, opt_state, dual_params, dual_state = carry
    count, key = at
    value = jnp.maximum(duals.multipliers(dual_params)["quality"], 1e-3)
    gradient = jax.grad(expected_pair_loss)(logits, rewards, ref, value, decisiveness)
    updates, opt_state = optimizer.update(gradient, opt_state)
    mean_reward = jax.nn.softmax(logits) @ rewards
    if measured:
      sampled = jnp.mean(rewards[jax.random.categorical(key, logits, shape=(SAMPLES,))])
      constraint = {"quality": duals.at_least(sampled, OFFLINE_FLOOR)}
      slope = jax.grad(lambda d: duals.lagrangian_terms(d, constraint).dual_loss)(dual_params)
      changes, next_state = controller.update(slope, dual_state, dual_params)
      due = count % MEASURE_EVERY == MEASURE_EVERY - 1
      keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(due, a, b), new, old)
      dual_params = keep(optax.apply_updates(dual_params, changes), dual_params)
      dual_state = keep(next_state, dual_state)
    return (logits + updates, opt_state, dual_params, dual_state), (mean_reward, value)

  start = ref, optimizer.init(ref), dual_params, controller.init(dual_params)
  return jax.lax.scan(step, start, (jnp.arange(STEPS), jax.random.split(key, STEPS)))[1]


def offline_floor(rewards: jax.Array, ref: jax.Array) -> dict:
  """Trap 4: expected reward after offline training by multiplier, which is fixed or moved by measurement."""
  multipliers, key = np.linspace(0.5, 6, 12), jax.random.key(0)

  def closed_form(multiplier, scale):
    weights = family.weights_from_multipliers(multiplier, KL_MULTIPLIER)
    log_probs = family.target_log_probs(scale * rewards, ref, **weights._asdict())
    return float(jnp.exp(log_probs) @ rewards)

  stored = [duals.init_dual_params({"quality": float(m)}) for m in multipliers]
  train = functools.partial(train_offline, measured=False)
  train_all = jax.jit(jax.vmap(train, in_axes=(None, None, 0, None, None)))
  curves = {}
  for c in DECISIVENESS:
    reward, _ = train_all(rewards, ref, jax.tree.map(lambda *x: jnp.stack(x), *stored), c, key)
    curves[str(c)] = reward[:, -1].tolist()
  errors = [
    abs(trained - closed_form(m, c))
    for c in DECISIVENESS
    for m, trained in zip(multipliers, curves[str(c)], strict=True)
  ]
  low, high = 0.1, 20.0  # bisection for the multiplier that meets the floor at decisiveness 1
  for _ in range(60):
    middle = (low + high) / 2
    low, high = (middle, high) if closed_form(middle, 1.0) < OFFLINE_FLOOR else (low, middle)
  runs = {}
  for measured in (False, True):
    for c in DECISIVENESS:
      start = duals.init_dual_params({"quality": middle})
      reward, used = train_offline(rewards, ref, start, c, key, measured=measured)
      runs[f"{'measured' if measured else 'fixed'}, {c}"] = {
        "measured": measured,
        "decisiveness": c,
        "final_reward": float(reward[-500:].mean()),
        "final_multiplier": float(used[-500:].mean()),
        "reward": reward[::MEASURE_EVERY].tolist(),
      }
  return {
    "min_reward": OFFLINE_FLOOR,
    "reference_reward": float(jnp.exp(ref) @ rewards),
    "kl_multiplier": KL_MULTIPLIER,
    "multiplier": multipliers.tolist(),
    "reward_by_decisiveness": curves,
    "largest_error_of_training": max(errors),
    "chosen_multiplier": middle,
    "every": MEASURE_EVERY,
    "samples": SAMPLES,
    "runs": runs,
  }
