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


controller = qj.duals.pi_controller(proportional_gain=20.0, integral_gain=0.3, smoothing=0.9)


@nnx.jit
def train_step(model, optimizer, dual_params, dual_state, key):
  """One update of the model and of its multiplier."""
  tokens = sample(model, key, GROUP)
  rewards, quality = words.reward(tokens), qj.duals.multipliers(dual_params)["quality"]

  def loss_fn(model):
    log_p = model(tokens)
    chosen, entropies = jnp.take_along_axis(log_p, tokens[..., None], -1)[..., 0], -jnp.sum(jnp.exp(log_p) * log_p, -1)
    mask = jnp.ones_like(chosen)
    climb = jax.vmap(qj.losses.policy_gradient_loss)(chosen, qj.advantages.leave_one_out(quality * rewards), mask)
    entropy = jax.vmap(qj.estimators.sequence_entropy_surrogate)(chosen, entropies, mask)
    return jnp.mean(climb - entropy) / (1 + quality), jnp.mean(jnp.sum(entropies, -1))

  (_, entropy), gradient = nnx.value_and_grad(loss_fn, has_aux=True)(model)
  optimizer.update(model, gradient)
  constraints = {"quality": qj.duals.at_least(jnp.mean(rewards), words.FLOOR)}
  dual_params, dual_state, _ = qj.duals.dual_step(dual_params, dual_state, constraints, controller)
  return dual_params, dual_state, {"reward": jnp.mean(rewards), "entropy": entropy, "multiplier": quality}


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
