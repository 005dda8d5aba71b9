"""Parameters go straight to their devices as they are read: the same values, with little extra memory."""

import dataclasses
import json
import math
import pathlib
import subprocess
import sys

import gguf
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from qempo_jax import sharding
from qempo_jax.errors import InputError
from qempo_jax.models import conversion
from qempo_jax.models import hugging_face
from qempo_jax.models import placing
from qempo_jax.models import tensor_names
from qempo_jax.models.config import ModelConfig
from qempo_jax.models.config import RopeScaling

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "families"
FAMILIES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())


def _equal_and_placed(params, expected, mesh):
  shardings = sharding.tree_shardings(expected, mesh, sharding.PARAM_RULES)

  def same(leaf, own, where):
    np.testing.assert_array_equal(np.asarray(leaf), own)
    assert leaf.sharding.is_equivalent_to(where, leaf.ndim)
    for shard in leaf.addressable_shards:
      np.testing.assert_array_equal(np.asarray(shard.data), own[shard.index])

  jax.tree.map(same, params, expected, shardings)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_lands_where_its_rules_say(name):
  _, expected = conversion.load(GOLDEN / name)
  mesh = sharding.make_mesh((2, 2, 2))
  _equal_and_placed(conversion.load(GOLDEN / name, mesh=mesh)[1], expected, mesh)


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1), (1, 1, 8)])
def test_any_mesh_gets_the_same(shape):
  _, expected = conversion.load(GOLDEN / "qwen2")
  mesh = sharding.make_mesh(shape)
  _equal_and_placed(conversion.load(GOLDEN / "qwen2", mesh=mesh)[1], expected, mesh)


def test_blocks_may_be_split_too():
  rows = np.arange(24, dtype=np.float32).reshape(4, 6)
  rules = ((r"layers/gate$", sharding.P("fsdp", "tensor")),)
  place = placing.onto_mesh(sharding.make_mesh((1, 4, 2)), rules=rules)
  leaf = place(("layers", "gate"), rows.shape, (((block,), row) for block, row in enumerate(rows)))
  assert leaf.addressable_shards[0].data.shape == (1, 3)
  np.testing.assert_array_equal(np.asarray(leaf), rows)


@pytest.mark.parametrize("mesh_shape", [None, (1, 4, 2)])
def test_parameters_get_the_type_asked_for(mesh_shape):
  mesh = mesh_shape and sharding.make_mesh(mesh_shape)
  _, wide = conversion.load(GOLDEN / "llama2")
  _, params = conversion.load(GOLDEN / "llama2", mesh=mesh, dtype=ml_dtypes.bfloat16)
  same = lambda leaf, own: np.testing.assert_array_equal(np.asarray(leaf), own.astype(ml_dtypes.bfloat16))
  jax.tree.map(same, params, wide)


GGUF_CONFIG = ModelConfig(
  vocab_size=40,
  hidden_size=32,
  intermediate_size=64,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  rope_theta=500.0,
  norm_epsilon=1e-5,
  tie_embeddings=False,
)
K_CONFIG = dataclasses.replace(GGUF_CONFIG, hidden_size=256, intermediate_size=256, head_dim=64)
# Of formats that gguf only reads: places of a block's half-precision scales.
SCALES = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
SIZES = {
  "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 7, "num_attention_heads": 4,
  "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-5, "rope_theta": 500.0,
}  # fmt: skip
# Architecture -> (gguf's, values of config.json besides SIZES).
ARCHITECTURES = {
  "qwen2": ("qwen2", {"tie_word_embeddings": True}),
  "qwen3": ("qwen3", {"tie_word_embeddings": False}),
  "gemma3": ("gemma3_text", {"sliding_window": 6, "query_pre_attn_scalar": 8}),
  "gemma3, 62 blocks": (
    "gemma3_text",
    {"sliding_window": 6, "query_pre_attn_scalar": 10, "hidden_size": 40, "num_hidden_layers": 62},
  ),
}


def _quantise(rng, shape, kind):
  """Random rows in a format's bytes; of those that gguf only reads, any bytes with finite scales."""
  if kind.name not in SCALES:
    return gguf.quants.quantize(rng.normal(size=shape).astype(np.float32), kind)
  block, size = gguf.GGML_QUANT_SIZES[kind]
  data = rng.integers(0, 256, (shape[0], shape[1] // block, size), dtype=np.uint8)
  for start in SCALES[kind.name]:
    data[..., start : start + 2] = np.float16([0.01]).view(np.uint8)
  return data.reshape(shape[0], -1)


def _write_gguf(path, kind, config=GGUF_CONFIG, architecture="llama", **lies):
  """A random GGUF file; returns what it holds, by Hugging Face's names and in its layout."""
  writer = gguf.GGUFWriter(path, architecture)
  names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, architecture.upper()), config.num_layers)
  writer.add_embedding_length(config.hidden_size)
  writer.add_feed_forward_length(lies.get("feed_forward", config.intermediate_size))
  writer.add_block_count(lies.get("blocks", config.num_layers))
  writer.add_head_count(config.num_heads)
  if config.num_kv_heads != config.num_heads:
    writer.add_head_count_kv(config.num_kv_heads)
  writer.add_rope_freq_base(config.rope_theta)
  writer.add_layer_norm_rms_eps(config.norm_epsilon)
  if architecture != "llama" or config.head_dim * config.num_heads != config.hidden_size:
    writer.add_key_length(config.head_dim)
  if config.windows:
    writer.add_sliding_window(config.windows[0])
  if "parts" in lies:
    writer.add_uint16("split.count", lies["parts"])
  if "divisors" in lies:
    writer.add_tensor("rope_freqs.weight", np.array(lies["divisors"], np.float32))
  rng, held = np.random.default_rng(0), {}
  for spec in tensor_names.tensor_specs(config):
    quantised = gguf.GGMLQuantizationType.F32 if len(spec.stored) == 1 else kind
    stored = _quantise(rng, spec.stored, quantised)
    held[spec.name] = gguf.quants.dequantize(stored, quantised) - config.norm_offset * ("norm" in spec.name)
    name = names.get_name(spec.name, try_suffixes=(".weight", ".bias"))
    for projection, heads in (("q_proj", config.num_heads), ("k_proj", config.num_kv_heads)):
      if projection in spec.name and architecture == "llama":  # llama.cpp puts a head's two rotary halves side by side
        split = stored.reshape(heads, 2, -1, stored.shape[-1])
        stored = np.ascontiguousarray(split.swapaxes(1, 2)).reshape(stored.shape)
    writer.add_tensor(name, stored, raw_dtype=quantised)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return held


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", *SCALES])
@pytest.mark.parametrize("mesh_shape", [None, (2, 2, 2)])
def test_gguf_files_come_in_exactly(tmp_path, kind, mesh_shape):
  expected = K_CONFIG if kind in SCALES else GGUF_CONFIG
  held = _write_gguf(tmp_path / "model.gguf", gguf.GGMLQuantizationType[kind], expected)
  _assert_read(tmp_path / "model.gguf", expected, held, mesh_shape and sharding.make_mesh(mesh_shape))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_come_in_exactly(tmp_path, name):
  model_type, options = ARCHITECTURES[name]
  expected = hugging_face.from_hugging_face(SIZES | options | {"model_type": model_type})
  kind = gguf.GGMLQuantizationType.F16
  held = _write_gguf(tmp_path / "model.gguf", kind, expected, architecture=name.partition(",")[0])
  _assert_read(tmp_path / "model.gguf", expected, held)


def _assert_read(path, expected, held, mesh=None):
  config, params = conversion.load(path, mesh=mesh)
  epsilon = float(np.float32(expected.norm_epsilon))  # what a GGUF file can say
  assert config == dataclasses.replace(expected, norm_epsilon=epsilon)
  params = jax.device_get(params)
  for spec in tensor_names.tensor_specs(config):
    leaf = (params["layers"] if spec.index else params)[spec.key][spec.index]
    np.testing.assert_array_equal(spec.to_hugging_face(leaf), held[spec.name], err_msg=spec.name)


def test_llama3_scaling_comes_in_as_divisors_of_frequencies(tmp_path):
  """As llama.cpp's converter writes them; the reference is the published formula, pair by pair."""
  scaling = RopeScaling("llama3", 32.0, 1.0, 4.0, 8192)
  expected = dataclasses.replace(GGUF_CONFIG, num_kv_heads=4, head_dim=64, rope_theta=5e5, rope_scaling=scaling)
  divisors = []
  for pair in range(32):
    periods = 8192 / (2 * math.pi * 5e5 ** (pair / 32))
    kept = min(max((periods - 1) / 3, 0.0), 1.0)
    divisors.append(1 / (kept + (1 - kept) / 32))
  held = _write_gguf(tmp_path / "model.gguf", gguf.GGMLQuantizationType.F16, expected, divisors=divisors)
  _assert_read(tmp_path / "model.gguf", expected, held)


@pytest.mark.parametrize(
  ("lies", "message"),
  [
    ({"feed_forward": 96}, "does not fit"),
    ({"blocks": 3}, "blk.2"),
    ({"parts": 2}, "one of 2 files of a model; join them"),
    ({"divisors": [1.0, 2.0, 9.0, 3.0]}, "rope_freqs.weight is not that of Llama 3.1"),
  ],
)
def test_a_gguf_file_that_lies_about_its_shapes_is_named(tmp_path, lies, message):
  _write_gguf(tmp_path / "model.gguf", gguf.GGMLQuantizationType.F16, **lies)
  with pytest.raises(InputError, match=message):
    conversion.load(tmp_path / "model.gguf")


PEAK = """
import sys, numpy as np, jax
from qempo_jax import sharding
from qempo_jax.models import conversion
from qempo_jax.models import placing
mesh = sharding.make_mesh((1, -1, 1))
jax.block_until_ready(jax.device_put(np.zeros(8 * 1024), sharding.batch_sharding(mesh)))
status = lambda key: next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key)) * 1024
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
_, params = conversion.load(sys.argv[1], mesh=mesh)
jax.block_until_ready(params)
print(status("VmHWM") - before, sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_the_peak_is_about_one_stacked_leaf_over_the_model(tmp_path):
  # 16 blocks of 23 MB each, four devices.
  config = {"model_type": "llama", "vocab_size": 512, "hidden_size": 512, "intermediate_size": 3072}
  config |= {"num_hidden_layers": 16, "num_attention_heads": 8, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
  (tmp_path / "config.json").write_text(json.dumps(config))
  shape = ModelConfig(512, 512, 3072, 16, 8, 8, 64, 1e4, 1e-5, True)
  tensors = {spec.name: np.full(spec.stored, 0.5, np.float32) for spec in tensor_names.tensor_specs(shape)}
  safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
  largest = 16 * 512 * 3072 * 4

  environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu", "PATH": ""}
  command = [sys.executable, "-c", PEAK, str(tmp_path)]
  result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
  peak, model = map(int, result.stdout.split())
  print(f"model {model / 1e6:.0f} MB, largest leaf {largest / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB over the start")
  assert model > 3 * largest
  assert peak < model + 1.5 * largest


def test_tensor_parallelism_splits_whole_heads_and_the_widths_between_products():
  _, params = conversion.load(GOLDEN / "qwen2")
  layers = sharding.tree_shardings(params, sharding.make_mesh((2, 2, 2)), sharding.PARAM_RULES)["layers"]
  split = {"query": 2, "key": 2, "value": 2, "output": 1, "gate": 2, "up": 2, "down": 1}
  assert {name: tuple(layers[name].spec).index("tensor") for name in split} == split
