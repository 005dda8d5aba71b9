"""A training step of one group with its prompt computed once, or with each answer; the results are the same."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.bench import batches
from experiments.benchmarks.bench import serving
from experiments.benchmarks.bench import settings
from qempo_jax import packing
from qempo_jax import scoring
from qempo_jax.models import conversion
from qempo_jax.train import optimizers

BUCKET, CHUNK = 32, 256


def prepare(spec: dict):
  """Returns a step that scores the group, differentiates and updates."""
  shape = spec["shape"]
  config, params = conversion.load(f"{spec['inputs']}/policy")
  params = jax.tree.map(jnp.asarray, params)
  prompt = batches.prompts(spec["inputs"], shape | {"prompts": 1})[0].tolist()
  answers = batches.given_groups(spec["inputs"], shape | {"prompts": 1})[0].tolist()
  if spec["options"]["way"] == "shared":
    packed, group = packing.pack_groups([prompt], [answers], bucket=BUCKET), len(answers)
  else:
    packed, group = packing.pack_groups([prompt] * len(answers), [[a] for a in answers], bucket=BUCKET), 1
  optimizer = optimizers.adamw(
    learning_rate=settings.LEARNING_RATE,
    warmup_steps=0,
    total_steps=1,
    final_fraction=1.0,
    b1=settings.B1,
    b2=settings.B2,
    weight_decay=settings.WEIGHT_DECAY,
    max_grad_norm=settings.MAX_GRAD_NORM,
  )

  def loss(params):
    stats = scoring.score_groups(
      params, config, packed, group_size=group, max_length=shape["response"], temperature=1.0, chunk_size=CHUNK
    )
    return -jnp.mean(jnp.sum(stats.log_prob + 0.1 * stats.entropy, axis=-1))

  def step(params, state):
    value, gradient = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(gradient, state, params)
    return jax.tree.map(jnp.add, params, updates), state, value

  program = jax.jit(step, donate_argnums=(0, 1))
  held = [(params, jax.jit(optimizer.init)(params))]
  del params

  def one():
    new, state, value = jax.block_until_ready(program(*held.pop()))
    held.append((new, state))
    return {"check": float(value), "places": int(np.prod(packed.tokens.shape))}

  return one


if __name__ == "__main__":
  serving.serve(prepare)
