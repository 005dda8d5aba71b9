"""A quality floor in an Equinox loop: `python -m experiments.interop.equinox_loop`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from experiments.interop import words
import qempo_jax as qj

GROUP, STEPS = 256, 1200


class Writer(eqx.Module):
  """An MLP over the letters so far; it knows nothing of rewards."""

  mlp: eqx.nn.MLP

  def __init__(self, width: int, key):
    size = words.LENGTH * (words.LETTERS + 1)
    self.mlp = eqx.nn.MLP(size, words.LETTERS, width, depth=1, activation=jnp.tanh, key=key)

  def __call__(self, word_T):
    """Next-letter log-probs [T, V] of every prefix of one word."""
    seen = jnp.tril(jnp.ones((words.LENGTH, words.LENGTH), bool), -1)
    prefixes = jnp.where(seen, word_T[None], words.LETTERS)
    features = jax.nn.one_hot(prefixes, words.LETTERS + 1)
    return jax.nn.log_softmax(jax.vmap(self.mlp)(features.reshape(words.LENGTH, -1)))


def sample(model: Writer, key):
  """Words [G, T] of the model."""
  tokens = jnp.zeros((GROUP, words.LENGTH), int)
  for t, k in enumerate(jax.random.split(key, words.LENGTH)):
    tokens = tokens.at[:, t].set(jax.random.categorical(k, jax.vmap(model)(tokens)[:, t]))
  return tokens


constraints = {"quality": qj.constraints.reward_floor("reward", words.FLOOR)}
method = qj.methods.qempo()
controller = qj.duals.pi_controller(proportional_gain=20.0, integral_gain=0.3, smoothing=0.9)
optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, STEPS))


@eqx.filter_jit
def train_step(model, opt_state, dual_params, dual_state, key):
  """One update of the model and of its multiplier."""
  tokens = sample(model, key)
  group = words.as_group(tokens)
  prices = qj.methods.Prices(method.entropy_weight, qj.duals.multipliers(dual_params))

  @eqx.filter_value_and_grad(has_aux=True)
  def loss_fn(model):
    stats = qj.token_stats.from_logits(jax.vmap(model)(tokens), tokens)
    return qj.group_loss(stats, group, prices, constraints, method, replay_weight=0.0), stats

  (_, stats), gradient = loss_fn(model)
  updates, opt_state = optimizer.update(gradient, opt_state)
  measured = qj.constraints.measure(constraints, group, jnp.sum(stats.log_prob, -1))
  enforced = qj.constraints.enforced(constraints, measured)
  dual_params, dual_state, _ = qj.duals.dual_step(dual_params, dual_state, enforced, controller)
  row = words.row(measured["quality"], stats.entropy, prices)
  return eqx.apply_updates(model, updates), opt_state, dual_params, dual_state, row


def main() -> list[dict]:
  """Trains, and returns what each step measured."""
  model = Writer(64, jax.random.key(0))
  opt_state = optimizer.init(eqx.filter(model, eqx.is_array))
  dual_params = qj.duals.init_dual_params({"quality": 1.0})
  dual_state, history = controller.init(dual_params), []
  for key in jax.random.split(jax.random.key(0), STEPS):
    model, opt_state, dual_params, dual_state, row = train_step(model, opt_state, dual_params, dual_state, key)
    history.append(jax.tree.map(float, row))
  return history


if __name__ == "__main__":
  print(words.summary(main(), last=300))
