"""A quality floor in a Flax NNX training loop: `python -m experiments.interop.nnx_loop`."""

from flax import nnx
import jax
import jax.numpy as jnp
import optax

from experiments.interop import words
import qempo_jax as qj

GROUP, STEPS = 256, 1200


class Writer(nnx.Module):
  """A recurrent network over letters; it knows nothing of rewards."""

  def __init__(self, width: int, rngs: nnx.Rngs):
    self.embed = nnx.Embed(words.LETTERS + 1, width, rngs=rngs)
    self.cell = nnx.GRUCell(width, width, rngs=rngs)
    self.head = nnx.Linear(width, words.LETTERS, rngs=rngs)

  def __call__(self, tokens_GxT):
    """Next-letter log-probs [G, T, V] of every prefix of the words."""
    start = jnp.full_like(tokens_GxT[:, :1], words.LETTERS)
    inputs = self.embed(jnp.concatenate([start, tokens_GxT[:, :-1]], axis=1))
    state, outputs = jnp.zeros_like(inputs[:, 0]), []
    for t in range(words.LENGTH):
      state, out = self.cell(state, inputs[:, t])
      outputs.append(self.head(out))
    return jax.nn.log_softmax(jnp.stack(outputs, axis=1))


def sample(model, key, count: int):
  """Words [count, T] of the model."""
  tokens = jnp.zeros((count, words.LENGTH), int)
  for t, k in enumerate(jax.random.split(key, words.LENGTH)):
    tokens = tokens.at[:, t].set(jax.random.categorical(k, model(tokens)[:, t]))
  return tokens


constraints = {"quality": qj.constraints.reward_floor("reward", words.FLOOR)}
method = qj.methods.qempo(entropy_gradient="rao_blackwell")
controller = qj.duals.pi_controller(proportional_gain=20.0, integral_gain=0.3, smoothing=0.9)


@nnx.jit
def train_step(model, optimizer, dual_params, dual_state, key):
  """One update of the model and of its multiplier."""
  tokens = sample(model, key, GROUP)
  group = words.as_group(tokens)
  prices = qj.methods.Prices(method.entropy_weight, qj.duals.multipliers(dual_params))

  def loss_fn(model):
    stats = qj.token_stats.from_logits(model(tokens), tokens)
    return qj.group_loss(stats, group, prices, constraints, method, replay_weight=0.0), stats

  (_, stats), gradient = nnx.value_and_grad(loss_fn, has_aux=True)(model)
  optimizer.update(model, gradient)
  measured = qj.constraints.measure(constraints, group, jnp.sum(stats.log_prob, -1))
  enforced = qj.constraints.enforced(constraints, measured)
  dual_params, dual_state, _ = qj.duals.dual_step(dual_params, dual_state, enforced, controller)
  return dual_params, dual_state, words.row(measured["quality"], stats.entropy, prices)


def main() -> list[dict]:
  """Trains, and returns what each step measured."""
  model = Writer(32, nnx.Rngs(0))
  optimizer = nnx.Optimizer(model, optax.adam(optax.cosine_decay_schedule(5e-3, STEPS)), wrt=nnx.Param)
  dual_params = qj.duals.init_dual_params({"quality": 1.0})
  dual_state, history = controller.init(dual_params), []
  for key in jax.random.split(jax.random.key(0), STEPS):
    dual_params, dual_state, row = train_step(model, optimizer, dual_params, dual_state, key)
    history.append(jax.tree.map(float, row))
  return history


if __name__ == "__main__":
  print(words.summary(main(), last=300))
