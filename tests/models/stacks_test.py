"""Blocks of several kinds: which have a leaf, in what ranges they run, and programs whose size depth does not change."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax.models import parameters
from qempo_jax.models import stacks
from qempo_jax.models import transformer
from qempo_jax.models.config import DeltaNet
from qempo_jax.models.config import Kind
from qempo_jax.models.config import ModelConfig

PLAIN = ModelConfig(40, 16, 24, 4, 4, 2, 8, 1e4, 1e-6, True)
GEMMA4 = dataclasses.replace(
  PLAIN,
  num_layers=12,
  windows=(4, 4, None) * 4,
  local_rope_theta=10.0,
  global_head_dim=16,
  global_kv_heads=1,
  keys_as_values=True,
  shared_blocks=3,
  shared_width=48,
  block_embedding=(40, 6),
)
QWEN35 = dataclasses.replace(
  PLAIN, num_layers=8, delta_net=DeltaNet(2, 4, 4, 6, 3), delta_blocks=(True, True, True, False) * 2
)


def test_leaves_are_stacked_over_the_blocks_that_have_them():
  shapes = parameters.param_shapes(GEMMA4)["layers"]
  count = {key: shape[0] for key, shape in shapes.items()}
  assert (count["query"], count["key"], count["global_query"], count["global_key"]) == (8, 6, 4, 3)
  assert (count["gate"], count["shared_gate"], count["attention_norm"], count["block_gate"]) == (9, 3, 12, 12)
  assert "global_value" not in count and shapes["shared_gate"] == (3, 16, 48)
  biased = parameters.param_shapes(dataclasses.replace(GEMMA4, biases=("query", "key", "value", "output")))["layers"]
  assert {key: biased[key] for key in biased if "bias" in key} == {
    "query_bias": (8, 32), "key_bias": (6, 16), "value_bias": (6, 16), "output_bias": (8, 16),
    "global_query_bias": (4, 64), "global_key_bias": (3, 16), "global_output_bias": (4, 16),
  }  # fmt: skip
  shapes = parameters.param_shapes(QWEN35)["layers"]
  assert (shapes["query"][0], shapes["delta_query"], shapes["gate"][0]) == (2, (6, 16, 2, 4), 8)
  assert parameters.param_shapes(PLAIN)["layers"]["query"][0] == 4


def test_blocks_are_taken_apart_and_joined_again():
  for config in (PLAIN, GEMMA4, QWEN35):
    shapes = parameters.param_shapes(config)["layers"]
    blocks = {key: np.arange(np.prod(shape)).reshape(shape) for key, shape in shapes.items()}
    cuts = (0, 1, 5, config.num_layers) if config.num_layers > 5 else (0, 1, config.num_layers)
    parts = [stacks.part(blocks, config.kinds, *pair) for pair in zip(cuts, cuts[1:])]
    jax.tree.map(lambda whole, *some: np.testing.assert_array_equal(whole, np.concatenate(some)), blocks, *parts)
    seen = [stacks.one(blocks, config.kinds, index) for index in range(config.num_layers)]
    assert sum(leaf.size for leaf in jax.tree.leaves(seen)) == sum(leaf.size for leaf in jax.tree.leaves(blocks))
    assert stacks.count(blocks) == config.num_layers


@pytest.mark.parametrize("config", [PLAIN, GEMMA4, QWEN35], ids=["one kind", "shared keys", "delta nets"])
def test_running_them_visits_each_block_once_in_order(config):
  blocks = {"attention_norm": jnp.arange(float(config.num_layers))[:, None]}
  blocks |= {
    key: jnp.zeros(shape) for key, shape in parameters.param_shapes(config)["layers"].items() if "norm" not in key
  }
  mixers = ("attention", "global", "delta")

  def step(x, layer, option, kept, *, kind, keeps):
    index, place = layer["attention_norm"][0], x["next"]
    x = {"next": place + 1, "seen": x["seen"].at[place].set(index + 0.1 * mixers.index(kind.mixer))}
    if kind.reuses:  # the marks of the last block of its mixer with keys of its own
      x["seen"] = x["seen"].at[place].add(100 * kept[kind.mixer])
    return x, option, index if keeps else None

  start = {"next": 0, "seen": jnp.zeros(config.num_layers)}
  end, outs = stacks.run(step, start, blocks, config, jnp.arange(config.num_layers))
  last = {m: max((i for i, k in enumerate(config.kinds) if k.mixer == m and not k.reuses), default=0) for m in mixers}
  expected = [
    i + 0.1 * mixers.index(kind.mixer) + (100 * last[kind.mixer] if kind.reuses else 0)
    for i, kind in enumerate(config.kinds)
  ]
  np.testing.assert_allclose(end["seen"], expected, rtol=1e-6)
  found = {index: int(out[place]) for blocks, out in outs for place, index in enumerate(blocks)}
  assert found == {index: index for index in range(config.num_layers)}


def test_the_program_does_not_grow_with_depth():
  def size(config):
    params = jax.eval_shape(lambda key: parameters.init(key, config), jax.random.key(0))
    tokens, mask = jnp.zeros((1, 5), jnp.int32), jnp.tri(5, dtype=bool)[None]
    run = lambda params: transformer.forward(params, config, tokens, jnp.arange(5)[None], mask)
    return len(str(jax.make_jaxpr(run)(params)).splitlines())

  deeper = dataclasses.replace(QWEN35, num_layers=16, delta_blocks=QWEN35.delta_blocks * 2)
  assert size(deeper) == size(QWEN35)
  deeper = dataclasses.replace(GEMMA4, num_layers=15, windows=(4, 4, None) * 5)
  assert size(deeper) == size(GEMMA4)


def test_kinds_without_a_period_run_one_by_one():
  assert stacks._period((Kind(), Kind("global"), Kind())) == 3
  assert stacks._period((Kind(), Kind("global")) * 3) == 2
