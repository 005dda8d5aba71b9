"""The train state: all that a run carries from step to step, as one pytree."""

from collections.abc import Sequence
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import optax

from qempo_jax.duals import DualParams


@struct.dataclass
class Averages:
  """Exponential moving averages of measured scalars, bias-corrected.

  Attributes:
    sums: decayed sums by name.
    weight: the decayed sum of ones.
  """

  sums: dict[str, jax.Array]
  weight: jax.Array

  @classmethod
  def create(cls, names):
    """Averages without measurements."""
    return cls({name: jnp.zeros(()) for name in names}, jnp.zeros(()))

  def update(self, values, decay):
    """Adds one measurement of each; a non-finite value keeps its average, and the first values must all be finite."""
    finite = {name: jnp.isfinite(values[name]) for name in self.sums}
    counts = jnp.all(jnp.stack(list(finite.values()))) | (self.weight > 0)
    new = {name: jnp.where(finite[name], values[name], average) for name, average in self.values().items()}
    mix = lambda old, new: jnp.where(counts, decay * old + (1 - decay) * new, old)
    return Averages({name: mix(old, new[name]) for name, old in self.sums.items()}, mix(self.weight, 1.0))

  def values(self):
    """The averages by name; 0 before the first measurement."""
    return {name: total / jnp.maximum(self.weight, 1e-12) for name, total in self.sums.items()}


@struct.dataclass
class TrainState:
  """The state of a run, and the content of a checkpoint.

  Attributes:
    step: number of updates.
    params: trainable parameters: the policy, or adapters of the reference.
    opt_state: state of the policy's optimizer.
    dual_params: multipliers of the constraints, see `duals`.
    dual_opt_state: state of their controller.
    averages: averages of measurements (values of the constraints, multipliers, entropy).
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
  """The policy in full fine-tuning: the trainable parameters, without the reference."""
  del ref_params
  return trainable


@jax.named_scope("optimizer")
def move_policy(
  state: TrainState, gradient: Any, loss: jax.Array, optimizer: optax.GradientTransformation
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update of the trainable parameters.

  If the loss or gradient norm is not finite, parameters and optimizer state are kept; `step` still advances, so the
  next batch is drawn. The update is a `cond`, not a `where`, so that each new array reuses its old one's memory.

  Args:
    state: the train state.
    gradient: gradient with respect to `state.params`.
    loss: a scalar.
    optimizer: the policy's optimizer.

  Returns:
    (the next state, {"loss", "grad_norm", "skipped": 0 or 1}).
  """
  norm = optax.tree.norm(gradient)
  finite = jnp.isfinite(loss) & jnp.isfinite(norm)

  def update(params, opt_state):
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  params, opt_state = jax.lax.cond(finite, update, lambda *same: same, state.params, state.opt_state)
  next_state = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
  return next_state, {"loss": loss, "grad_norm": norm, "skipped": 1.0 - finite}


def keep_if_skipped(skipped: jax.Array, new: TrainState, old: TrainState) -> TrainState:
  """Selects `old` where the update was skipped; leaves that both share are returned unchanged."""
  return jax.tree.map(lambda after, before: after if after is before else jnp.where(skipped, before, after), new, old)


AVERAGED = ("reward", "kl", "entropy")


def create(
  params,
  dual_params: DualParams,
  rng,
  *,
  optimizer: optax.GradientTransformation,
  dual_optimizer: optax.GradientTransformation,
  averaged: Sequence[str] = AVERAGED,
) -> TrainState:
  """Initial state; it averages the values named `averaged`, and each multiplier as `multiplier/NAME`."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    dual_params=dual_params,
    dual_opt_state=dual_optimizer.init(dual_params),
    averages=Averages.create((*averaged, *(f"multiplier/{name}" for name in dual_params))),
    rng=rng,
  )
