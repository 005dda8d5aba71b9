"""Everything a training run carries from step to step, as one pytree."""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import optax

from qempo_jax.duals import DualParams


@struct.dataclass
class Averages:
  """Exponential moving averages of measured scalars, corrected for their start at zero.

  Attributes:
    sums: decayed sums by name.
    weight: the decayed sum of ones.
  """

  sums: dict[str, jax.Array]
  weight: jax.Array

  @classmethod
  def create(cls, names):
    """Averages of nothing yet."""
    return cls({name: jnp.zeros(()) for name in names}, jnp.zeros(()))

  def update(self, values, decay):
    """Adds one measurement of each; a non-finite one keeps what was there."""
    mix = lambda old, new: jnp.where(jnp.isfinite(new), decay * old + (1 - decay) * new, old)
    sums = {name: mix(old, values[name]) for name, old in self.sums.items()}
    return Averages(sums, decay * self.weight + (1 - decay))

  def values(self):
    """The averages by name; 0 before the first measurement."""
    return {name: total / jnp.maximum(self.weight, 1e-12) for name, total in self.sums.items()}


@struct.dataclass
class TrainState:
  """The state of a run; what a checkpoint holds.

  Attributes:
    step: updates done.
    params: what is trained: the policy, or adapters beside the reference.
    opt_state: the policy's optimizer.
    dual_params: multipliers of the constraints, see `duals`.
    dual_opt_state: their controller.
    averages: measured averages (values of the constraints, multipliers, entropy).
    rng: key of the run; random numbers are folded from it by step, prompt and sample.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  dual_params: DualParams
  dual_opt_state: Any
  averages: Averages
  rng: jax.Array


def whole_policy(trainable, ref_params):
  """The policy where all of it is trained: what is trained, and nothing of the reference."""
  del ref_params
  return trainable


def keep_if_finite(new: TrainState, old: TrainState, *values) -> tuple[TrainState, dict[str, jax.Array]]:
  """The new state where every value is finite, else the old one with the new step, so that the data moves on.

  Args:
    new: the state after an update.
    old: the state before it.
    *values: scalars that tell a broken update, such as the loss and the gradient's norm.

  Returns:
    (the state, {"skipped": 0 or 1}).
  """
  ok = jnp.all(jnp.stack([jnp.isfinite(value) for value in values]))
  kept = jax.tree.map(lambda after, before: jnp.where(ok, after, before), new, old)
  return kept.replace(step=new.step), {"skipped": 1.0 - ok}


AVERAGED = ("reward", "kl", "entropy", "quality_multiplier", "kl_multiplier")


def create(
    params,
    dual_params: DualParams,
    rng,
    *,
    optimizer: optax.GradientTransformation,
    dual_optimizer: optax.GradientTransformation,
) -> TrainState:
  """The state before the first step."""
  return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt_state=optimizer.init(params),
      dual_params=dual_params,
      # Leaves of their own: a controller may start from the very arrays it controls, which can't be donated twice.
      dual_opt_state=jax.tree.map(jnp.copy, dual_optimizer.init(dual_params)),
      averages=Averages.create(AVERAGED),
      rng=rng,
  )
