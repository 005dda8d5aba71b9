"""A writer of words in the shape that google-tunix calls, and the QEMPO-KL problem of both its examples."""

from flax import nnx
import jax
import jax.numpy as jnp

from experiments.interop import nnx_loop
from experiments.interop import words
import qempo_jax as qj


class Model(nnx_loop.Writer):
  """Tokens [B, 1 + T], the first a start sign -> logits [B, 1 + T, V] of the next ones."""

  def __call__(self, tokens, positions=None, cache=None, attention_mask=None):
    """Logits, and the cache as it came: what Tunix's trainers call."""
    return jnp.pad(self.writer(tokens[:, 1:]), ((0, 0), (0, 1), (0, 0))), cache

  def writer(self, words_BxT):
    """Next-letter log-probs [B, T, V] of every prefix."""
    return nnx_loop.Writer.__call__(self, words_BxT)

  def sample(self, key, count: int):
    """Words [count, T]."""
    return _sample(self, key, count)


@nnx.jit(static_argnames="count")
def _sample(model, key, count):
  return nnx_loop.sample(model.writer, key, count)


def log_probs(model: Model):
  """Log-probs [64] of all words."""
  return jnp.sum(jnp.take_along_axis(model.writer(words.WORDS), words.WORDS[..., None], -1), axis=(-1, -2))


def problem() -> tuple[Model, Model, qj.exact.ExactSolution]:
  """The policy, the reference it starts from, which likes some letters better, and QEMPO-KL's exact optimum."""
  model, reference = Model(32, nnx.Rngs(0)), Model(32, nnx.Rngs(0))
  model.head.bias[...] = reference.head.bias[...] = jnp.array([1.5, 0.5, 0.0, -1.0])
  rewards = words.reward(words.WORDS)
  return (
    model,
    reference,
    qj.exact.solve_qempo_kl(rewards, log_probs(reference), min_reward=words.FLOOR, kl_position=0.5),
  )


def constraints(max_kl: float | None) -> dict[str, qj.constraints.Constraint]:
  """The quality floor and the KL budget."""
  return {"quality": qj.constraints.reward_floor("reward", words.FLOOR), "kl": qj.constraints.kl_budget(max_kl)}


def as_groups(e, size: int) -> qj.constraints.Group:
  """Tunix's batch as groups [P, G] of on-policy responses; its advantages are plain rewards."""
  ref_log_probs, ones = jnp.sum(e.ref_per_token_logps * e.completion_mask, -1), jnp.ones(len(e.advantages))
  parts = {"reward": e.advantages}, ref_log_probs, e.completion_mask, ones > 0, ones < 0, ones
  return jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), qj.constraints.Group(*parts))


def init_duals() -> dict[str, jax.Array]:
  """The multipliers where both examples start them: mu is linear in its parameter, so that it can reach 0."""
  return qj.duals.init_dual_params({"quality": 1.0, "kl": 0.5}, parametrisation={"quality": "log", "kl": "linear"})


def summary(rows: list[dict[str, float]], exact: qj.exact.ExactSolution) -> str:
  """One line: the means of a run's last measurements beside the exact values."""
  mean = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
  return (
    f"E[r] {mean['dual/quality/value']:.3f} (floor {words.FLOOR})  "
    f"lambda {mean['dual/quality/multiplier']:.2f} ({exact.quality_multiplier:.2f})  "
    f"KL {mean['dual/kl/value']:.3f} ({exact.kl:.3f})  mu {mean['dual/kl/multiplier']:.2f} ({exact.kl_multiplier:.2f})"
  )
