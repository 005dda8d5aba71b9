"""Seconds and memory of an offline or online update, and the FLOP a second that the model needs of it."""

import functools

import jax
import jax.numpy as jnp

from experiments.benchmarks.device import batches
from experiments.benchmarks.device import models
from experiments.compile import roofline
from experiments.compile.roofline import Batch
from qempo_jax import constraints
from qempo_jax import duals
from qempo_jax import methods
from qempo_jax import offline_losses
from qempo_jax.models import lora
from qempo_jax.train import offline_step
from qempo_jax.train import online_step
from qempo_jax.train import optimizers
from qempo_jax.train import state as train_state


def measure(*, model: str, tiny: bool, step: str, remat: str, rank: int, dtype: str, batch: dict, repeats: int) -> dict:
  """Times an update in bfloat16 products.

  Args:
    model: size.
    tiny: the stand-in for a CPU.
    step: "offline" (DPO on pairs with the reference's log-probs) or "online" (GRPO, reference scored in the step).
    remat: rematerialisation policy.
    rank: of adapters; 0 trains all weights.
    dtype: of stored parameters and moments.
    batch: sizes of the batch.
    repeats: updates; the median counts.
  """
  before = models.peak_bytes()
  shape, sizes = models.config(model, tiny=tiny, compute_dtype="bfloat16", remat=remat), Batch(**batch)
  base = models.params(shape, dtype)
  if step == "online":
    update, state = online(shape, base, rank, dtype)
  else:
    update, state = _offline(shape, base, rank, dtype)
    base = base if rank else None  # Donated to the state.
  if step == "online":
    rows = batches.packed(sizes, *batches.tokens(sizes, shape.vocab_size))
    rewards = jax.random.bernoulli(jax.random.key(3), 0.5, (sizes.rows, sizes.group))
    data = batches.groups(sizes, rows, rewards)
  else:
    data = batches.pairs(sizes, shape.vocab_size)
  program, compiled = models.compiled(update, state, base, data)
  del compiled["trace_seconds"]
  holder = [state]

  def run():
    holder[0], metrics = program(holder[0], base, data)
    return metrics

  taken = models.seconds(run, repeats=repeats)
  needed = roofline.model_flops(shape, sizes, rank=rank, reference=step == "online")
  metrics = run()
  return {
    "seconds": taken,
    "tokens_per_second": sizes.fed() / taken,
    "model_flops": needed,
    "flops": needed / taken,
    "peak_bytes": models.peak_bytes(before),
    "skipped": float(metrics["skipped"]),
    "grad_norm": float(metrics["grad_norm"]),
    **compiled,
  }


def _start(base, rank, shape, dtype, *, reference: bool):
  """(optimizer, the multipliers' own, first state, as_policy) of all weights, or of adapters.

  All weights are a copy of the base if that stays as the reference; else the base itself is donated.
  """
  optimizer = optimizers.adamw(
    learning_rate=1e-6,
    warmup_steps=0,
    total_steps=1000,
    final_fraction=1.0,
    b1=0.9,
    b2=0.95,
    weight_decay=0.0,
    max_grad_norm=1.0,
    moments_dtype=dtype,
  )
  trained = models.adapters(shape, base, rank) if rank else jax.tree.map(jnp.copy, base) if reference else base
  dual_params = duals.init_dual_params({"quality": 1.0, "kl": 0.04})
  controller = duals.pi_controller(proportional_gain=0.0, integral_gain=0.0, smoothing=0.9)
  create = lambda params: train_state.create(
    params, dual_params, jax.random.key(0), optimizer=optimizer, dual_optimizer=controller
  )
  state = jax.jit(create, donate_argnums=0)(trained)
  as_policy = (lambda params, base: lora.apply(base, params)) if rank else train_state.whole_policy
  return optimizer, controller, state, as_policy


def online(shape, base, rank: int, dtype: str):
  """(jitted update (state, reference, groups) -> (state, metrics), its first state): GRPO with a KL penalty."""
  optimizer, controller, state, as_policy = _start(base, rank, shape, dtype, reference=True)
  bounds = {"quality": constraints.reward_floor("reward", None), "kl": constraints.kl_budget(None)}
  objective = online_step.OnlineObjective(methods.grpo(beta=0.04), bounds, replay_weight=0.0, averaging=0.9)
  step = functools.partial(
    online_step.online_step,
    config=shape,
    objective=objective,
    optimizers=online_step.Optimizers(optimizer, controller),
    temperature=1.0,
    chunk_size=1024,
    as_policy=as_policy,
  )
  return jax.jit(step, donate_argnums=0), state


def _offline(shape, base, rank: int, dtype: str):
  """The same for DPO, (state, reference, pairs) -> (state, metrics)."""
  optimizer, _, state, as_policy = _start(base, rank, shape, dtype, reference=False)
  settings = offline_losses.LossSettings(0.0, 0.0, 1.0, 1.0, 0.0)
  objective = offline_step.OfflineObjective("dpo", (0.1, 0.1), settings, {}, 0.9)

  def step(state, base, pairs):
    return offline_step.offline_step(
      state,
      pairs,
      base,
      config=shape,
      objective=objective,
      optimizer=optimizer,
      temperature=1.0,
      chunk_size=1024,
      as_policy=as_policy,
    )

  return jax.jit(step, donate_argnums=0), state
