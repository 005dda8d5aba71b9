"""The roofline on paper beside compiled programs: FLOP by XLA's own count and by the jaxpr's, memory, known shapes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks.device import batches
from experiments.compile import chips
from experiments.compile import report
from experiments.compile import roofline
from experiments.compile.roofline import Batch
from experiments.studies import roofline_tables
from qempo_jax import scoring
from qempo_jax.models import decoding
from qempo_jax.models import lora
from qempo_jax.models import parameters
from qempo_jax.models import presets
from qempo_jax.models import shared_prompt
from qempo_jax.models import transformer
from qempo_jax.models.config import ModelConfig
from qempo_jax.models.kv_cache import KVCache

# One block, one chunk of tokens and one block of logits: no loop, whose body XLA's count takes once.
MODEL = ModelConfig(1024, 256, 512, 1, 4, 2, 64, 1e4, 1e-5, False)
BATCH = Batch(2, 64, 4, 33, 32)
SCORING = dict(group_size=4, max_length=33, temperature=1.0, chunk_size=4096)


def _flops(function, *arguments) -> float:
  """XLA's count of the compiled program, elementwise operations in it."""
  return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


def _rows(batch=BATCH):
  return batches.packed(batch, *batches.tokens(batch, MODEL.vocab_size))


def _params(config=MODEL):
  return jax.eval_shape(lambda: parameters.init(jax.random.key(0), config))


def test_a_scorer_and_its_gradient_have_the_flops_of_the_compiled_program():
  rows = _rows()
  score = lambda params: jnp.sum(scoring.score_groups(params, MODEL, rows, **SCORING).log_prob)
  forward = roofline.scorer(MODEL, BATCH, computed=True).flops
  assert _flops(score, _params()) == pytest.approx(forward, rel=0.05)
  both = forward + roofline.backward(MODEL, BATCH, computed=True).flops
  # With a single block of logits XLA finds that the gradient computes those of the forward pass again.
  both -= roofline.head_forward(MODEL, BATCH.scored(computed=True)).flops
  assert _flops(jax.grad(score), _params()) == pytest.approx(both, rel=0.05)


@pytest.mark.parametrize("rank", [0, 8])
@pytest.mark.parametrize("remat", ["full", "none"])
def test_flops_of_the_jaxpr(rank, remat):
  """Of several blocks, exactly: the jaxpr's count weighs loops."""
  config, rows = dataclasses.replace(MODEL, num_layers=3, remat=remat), _rows()
  base = _params(config)
  if rank:
    trained = jax.eval_shape(lambda: lora.init(jax.random.key(0), base, lora.LoraConfig(rank, 1.0)))
    policy = lora.apply
  else:
    trained, policy = base, lambda base, params: params
  score = lambda params, base: jnp.sum(scoring.score_groups(policy(base, params), config, rows, **SCORING).log_prob)
  expected = roofline.scorer(config, BATCH, computed=True, rank=rank).flops
  expected += roofline.backward(config, BATCH, computed=True, rank=rank, recompute=remat == "full").flops
  if rank:  # Traced, and removed by XLA: the gradient of the frozen output projection.
    expected += roofline.head_forward(config, BATCH.scored(computed=True)).flops
  found = report.product_flops(jax.jit(jax.grad(score)), trained, base)
  assert found == pytest.approx(expected, rel=1e-3)


def test_a_decode_step_has_the_flops_of_the_compiled_program():
  prompts, group, length, ring = 4, 4, 32, 32
  zeros = lambda: jnp.zeros((prompts, length, MODEL.num_kv_heads, MODEL.head_dim))
  made = lambda: [(zeros(), zeros()) for _ in range(MODEL.num_layers)]
  mask = jnp.ones((prompts, length), bool)
  cache = jax.eval_shape(lambda: KVCache.create(made(), mask, MODEL, group_size=group, max_length=ring))
  params = jax.eval_shape(lambda p: decoding.for_decoding(p, MODEL, length + ring), _params())

  def step(params, tokens, cache):
    hidden, cache = decoding.decode(params, MODEL, tokens, cache)
    return transformer.logits(hidden, params["unembedding"], MODEL), cache

  sizes = dict(prompts=prompts, group=group, prompt=length, past=ring, kind="float32")
  tokens = jax.ShapeDtypeStruct((prompts, group), jnp.int32)
  assert _flops(step, params, tokens, cache) == pytest.approx(roofline.decode_step(MODEL, **sizes).flops, rel=0.05)


def test_columns_and_pairs_are_those_of_packed_rows():
  rows = _rows()
  assert rows.tokens.size == BATCH.fed(computed=True) and rows.target.size == BATCH.scored(computed=True)
  assert int(np.sum(rows.segments >= 0)) == BATCH.fed() and int(np.sum(rows.sample < 4)) == BATCH.scored()
  attends = shared_prompt.mask_of_rows(rows.positions, rows.segments, BATCH.group)
  assert int(np.sum(attends)) == BATCH.pairs()


def test_weights_are_those_of_published_models():
  config = presets.get("llama-3.1-8b")
  weights = config.num_layers * roofline.block_weights(config) + 2 * config.vocab_size * config.hidden_size
  norms = (2 * config.num_layers + 1) * config.hidden_size
  assert weights + norms == presets.num_params(config)
  assert roofline.cache_bytes(config, "bfloat16") == 131072  # 128 KiB a token


def test_shards_and_kernels_count_as_often_as_they_run():
  mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  product = lambda x: x @ x.T
  spec = jax.sharding.PartitionSpec("a")
  split = jax.shard_map(product, mesh=mesh, in_specs=spec, out_specs=spec, axis_names={"a"}, check_vma=False)
  x = jax.ShapeDtypeStruct((16, 8), jnp.float32)
  assert report.product_flops(jax.jit(split), x) == 4 * 2 * 4 * 4 * 8


def test_devices_are_found_by_their_names():
  assert chips.by_device_kind("NVIDIA H200") is chips.GPUS["h200"]
  assert chips.by_device_kind("NVIDIA H100 80GB HBM3") is chips.GPUS["h100"]
  assert chips.by_device_kind("Tesla T4") is chips.GPUS["t4"]
  assert chips.by_device_kind("TPU v5 lite") is chips.CHIPS["v5e"]
  assert chips.by_device_kind("cpu") is None


def test_the_pages_hold_what_the_code_computes():
  for path, text in roofline_tables.pages().items():
    assert path.read_text(encoding="utf-8") == text, "run python -m experiments.studies.roofline_tables"
