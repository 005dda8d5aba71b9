"""Presets have their models' published numbers of parameters, and PyTorch's for the same values."""

import importlib.util
import math

import jax
import pytest

from qempo_jax import sharding
from qempo_jax.errors import InputError
from qempo_jax.models import hugging_face
from qempo_jax.models import hugging_face_out
from qempo_jax.models import parameters
from qempo_jax.models import presets

# Parameter counts from the models' pages on the Hugging Face hub. Those of Qwen3's two smallest count their tied
# output projection too, which is subtracted here.
PUBLISHED = {
  "smollm2-135m": 134_515_008,
  "smollm2-360m": 361_821_120,
  "smollm2-1.7b": 1_711_376_384,
  "llama-2-7b": 6_738_415_616,
  "llama-3.1-8b": 8_030_261_248,
  "llama-3.1-70b": 70_553_706_496,
  "llama-3.2-1b": 1_235_814_400,
  "llama-3.2-3b": 3_212_749_824,
  "mistral-7b-v0.3": 7_248_023_552,
  "qwen2.5-0.5b": 494_032_768,
  "qwen2.5-1.5b": 1_543_714_304,
  "qwen2.5-3b": 3_085_938_688,
  "qwen2.5-7b": 7_615_616_512,
  "qwen2.5-14b": 14_770_033_664,
  "qwen2.5-32b": 32_763_876_352,
  "qwen2.5-72b": 72_706_203_648,
  "qwen3-0.6b": 751_632_384 - 151_936 * 1024,
  "qwen3-1.7b": 2_031_739_904 - 151_936 * 2048,
  "qwen3-4b": 4_022_468_096,
  "qwen3-8b": 8_190_735_360,
  "qwen3-14b": 14_768_307_200,
  "qwen3-32b": 32_762_123_264,
  "gemma-2-2b": 2_614_341_888,
  "gemma-2-9b": 9_241_705_984,
  "gemma-2-27b": 27_227_128_320,
  "gemma-3-1b": 999_885_952,
  "olmo-2-1b": 1_484_916_736,
  "olmo-2-7b": 7_298_617_344,
  "olmo-2-13b": 13_716_198_400,
  "olmo-3-7b": 7_298_011_136,
  "olmo-3-32b": 32_233_522_176,
  "olmoe-1b-7b": 6_919_161_856,
  "smollm3-3b": 3_075_098_624,
  "phi-3-mini-4k": 3_821_079_552,
  "phi-4": 14_659_507_200,
  "granite-3.1-2b": 2_533_531_648,
  "granite-3.1-8b": 8_170_848_256,
  "ministral-8b": 8_019_808_256,
  "mistral-small-24b": 23_572_403_200,
  "mixtral-8x7b": 46_702_792_704,
  "qwen3-30b-a3b": 30_532_122_624,
  "qwen3-235b-a22b": 235_093_634_560,
  "llama-3.3-70b": 70_553_706_496,
}
# Billions, as printed in Table 1 of arXiv 2508.10925.
ROUNDED = {"gpt-oss-20b": 20.91, "gpt-oss-120b": 116.83}
# Of each family, and the one whose number is not published.
SMALLEST = (
  "smollm2-135m",
  "llama-3.2-1b",
  "mistral-7b-v0.3",
  "qwen2.5-0.5b",
  "qwen3-0.6b",
  "gemma-2-2b",
  "gemma-3-1b",
  "gemma-3-4b-text",
  "olmo-2-1b",
  "olmo-3-7b",
  "olmoe-1b-7b",
  "smollm3-3b",
  "phi-3-mini-4k",
  "granite-3.1-2b",
  "ministral-3-8b-text",
  "qwen3-30b-a3b",
  "gpt-oss-20b",
  "qwen3.5-0.8b",
  "qwen3.5-9b",
  "qwen3.5-27b",
  "qwen3.5-35b-a3b",
  "gemma-4-26b-a4b-text",
  "gemma-4-31b-text",
)


def test_parameters_are_as_many_as_published():
  assert {name: presets.num_params(presets.get(name)) for name in PUBLISHED} == PUBLISHED
  assert {name: round(presets.num_params(presets.get(name)) / 1e9, 2) for name in ROUNDED} == ROUNDED


def test_the_written_configuration_reads_back():
  configs = {name: presets.get(name) for name in presets.NAMES}
  written = {name: hugging_face_out.to_hugging_face(config) for name, config in configs.items()}
  assert (
    len(configs) >= len(PUBLISHED)
    and {name: hugging_face.from_hugging_face(written[name]) for name in configs} == configs
  )


@pytest.mark.parametrize("name", ["llama-3.1-70b", "gemma-2-27b", "qwen2.5-72b"])
def test_the_largest_can_be_split_over_devices(name):
  config = presets.get(name)
  mesh = sharding.make_mesh((1, -1, 2))
  made = jax.eval_shape(lambda rng: parameters.init(rng, config), jax.random.key(0))
  shardings = sharding.tree_shardings(made, mesh, sharding.PARAM_RULES)
  matrices = [(leaf, where) for leaf, where in zip(jax.tree.leaves(made), jax.tree.leaves(shardings)) if leaf.ndim > 2]
  assert matrices
  for leaf, where in matrices:
    assert leaf.size == jax.device_count() * math.prod(where.shard_shape(leaf.shape))


def test_an_unknown_preset_is_named():
  with pytest.raises(InputError, match="no preset 'qwen2.5-8b'; did you mean qwen2.5"):
    presets.get("qwen2.5-8b")
  with pytest.raises(InputError, match="presets are smollm2-135m"):
    presets.get("xyzzy")


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
@pytest.mark.parametrize(
  "names", [SMALLEST, pytest.param(presets.NAMES, marks=pytest.mark.slow)], ids=["smallest", "all"]
)
def test_parameters_are_as_many_as_pytorch_makes(names):
  import torch
  import transformers

  with torch.device("meta"):
    for name in names:
      config = presets.get(name)
      values = transformers.AutoConfig.for_model(**hugging_face_out.to_hugging_face(config))
      made = transformers.AutoModelForCausalLM.from_config(values).num_parameters()
      buffers = config.num_layers if config.block_scale else 0  # of one number each
      assert made + buffers == presets.num_params(config), name
