"""Training steps: pure functions from (state, batch) to (state, metrics)."""

from qempo_jax.train.state import TrainState as TrainState
from qempo_jax.train.step import dual_step as dual_step
from qempo_jax.train.step import policy_step as policy_step
