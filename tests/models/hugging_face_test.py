"""Reading config.json: published checkpoints' own wording, and what is refused by name."""

import importlib.util
import json
import math
import pathlib
import shutil

import numpy as np
import pytest

from qempo_jax.errors import InputError
from qempo_jax.models import conversion
from qempo_jax.models import hugging_face
from qempo_jax.models import verify_export
from qempo_jax.models.config import ModelConfig
from qempo_jax.models.config import RopeScaling

FAMILIES = pathlib.Path(__file__).parent.parent / "golden" / "families"
SIZES = {
  "vocab_size": 64,
  "hidden_size": 32,
  "intermediate_size": 48,
  "num_hidden_layers": 7,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "rms_norm_eps": 1e-6,
  "max_position_embeddings": 4096,
}
LLAMA31 = {
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 8192,
  "rope_type": "llama3",
}


def _read(model_type, **options) -> ModelConfig:
  return hugging_face.from_hugging_face(SIZES | {"model_type": model_type} | options)


def test_llama():
  config = _read("llama", rope_theta=500000.0, rope_scaling=LLAMA31)
  assert config == _read("llama", rope_parameters=LLAMA31 | {"rope_theta": 500000.0})
  assert config.rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
  assert (config.rope_theta, config.head_dim, config.windows, config.biases) == (500000.0, 8, (), ())
  assert _read("llama", num_key_value_heads=None).num_kv_heads == 4
  assert _read("llama", rope_theta=None).rope_theta == _read("llama").rope_theta == 10000.0


def test_mistral_windows():
  assert _read("mistral", sliding_window=4096).windows == (4096,) * 7
  assert _read("mistral").windows == (4096,) * 7  # what transformers fills in
  assert _read("mistral", sliding_window=None).windows == ()
  assert _read("mistral", head_dim=16).head_dim == 16


def test_qwen():
  plain = _read("qwen2", use_sliding_window=False, sliding_window=32768, max_window_layers=3)
  assert plain.windows == () and plain.biases == ("query", "key", "value")
  assert _read("qwen2", use_sliding_window=True, max_window_layers=5).windows == (None,) * 5 + (4096,) * 2
  assert _read("qwen3").head_dim == 128 and _read("qwen3").qk_norm == "head"


def test_olmo2():
  config = _read("olmo2")
  assert (config.norm_placement, config.qk_norm) == ("post", "width")


def test_gemma2_as_transformers_4_writes_it():
  config = _read("gemma2", hidden_act="gelu_pytorch_tanh", head_dim=16, query_pre_attn_scalar=64, sliding_window=9)
  assert config.windows == (9, None, 9, None, 9, None, 9)
  assert (config.attention_softcap, config.logit_softcap) == (50.0, 30.0)  # what transformers fills in
  assert config.query_scale == config.attention_scale == 64**-0.5
  assert config.tie_embeddings and config.activation == "gelu_tanh" and config.local_rope_theta is None


def test_gemma3_as_transformers_4_and_5_write_it():
  common = {"head_dim": 16, "query_pre_attn_scalar": 64, "sliding_window": 9, "final_logit_softcapping": None}
  scaling = {"rope_type": "linear", "factor": 8.0}
  rope = {"rope_theta": 1e6, "rope_local_base_freq": 10000.0, "rope_scaling": scaling}
  old = _read("gemma3_text", sliding_window_pattern=6, attn_logit_softcapping=None, **common, **rope)
  kinds = ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]
  nested = {
    "full_attention": scaling | {"rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
  }
  new = _read("gemma3_text", layer_types=kinds, rope_parameters=nested, **common)
  assert old == new
  assert old.windows == (9,) * 5 + (None, 9) and old.logit_softcap is None
  assert (old.rope_theta, old.local_rope_theta, old.rope_scaling) == (1e6, 1e4, RopeScaling("linear", 8.0))


def test_published_gemma3_leaves_out_what_transformers_fills_in():
  """The 4B's keys; those that it lacks are defaults of PyTorch transformers' class."""
  text = {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34}
  text |= {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}
  found = hugging_face.from_hugging_face({"model_type": "gemma3", "text_config": text})
  assert (found.vocab_size, found.num_heads, found.num_kv_heads, found.head_dim) == (262208, 8, 4, 256)
  assert found.windows[:6] == (1024,) * 5 + (None,) and found.rope_scaling == RopeScaling("linear", 8.0)
  assert found.norm_epsilon == 1e-6


def test_absent_key_and_value_heads_are_those_of_the_class():
  absent = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"} | {"num_attention_heads": 8}
  heads = lambda kind, **options: hugging_face.from_hugging_face(absent | {"model_type": kind} | options).num_kv_heads
  assert [heads(kind) for kind in ("llama", "gemma2", "gemma3_text", "mistral", "olmo2")] == [8, 4, 4, 8, 8]
  assert heads("gemma2", num_key_value_heads=None) == 8


def test_rope_scaling_comes_before_rope_parameters_as_in_transformers():
  yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
  both = _read("llama", rope_scaling=yarn, rope_parameters={"rope_type": "default", "rope_theta": 7.0}, rope_theta=9.0)
  assert both == _read("llama", rope_parameters=yarn | {"rope_theta": 9.0})
  assert (both.rope_theta, both.rope_scaling.original_length) == (9.0, 1024)
  assert _read("llama", rope_scaling={"type": "dynamic", "factor": 4.0}).rope_scaling.original_length == 4096


def test_blocks_without_rope():
  rotates = (True, True, True, False, True, True, True)
  assert _read("smollm3").rope_layers == rotates and _read("smollm3").rope_theta == 2e6
  assert _read("smollm3", no_rope_layers=[1] * 7).rope_layers == ()
  windows = _read("smollm3", use_sliding_window=True, sliding_window=9).windows
  assert windows == tuple(None if rotate else 9 for rotate in rotates)


def test_mixtures():
  config = _read("qwen3_moe", moe_intermediate_size=5, num_experts=6, num_experts_per_tok=3)
  assert (config.num_experts, config.experts_per_token, config.intermediate_size) == (6, 3, 5)
  assert config == _read("qwen3_moe", moe_intermediate_size=5, num_local_experts=6, num_experts_per_tok=3)
  assert _read("mixtral").normalise_experts and not _read("olmoe").normalise_experts


def test_keys_of_other_families_are_not_read():
  """PyTorch transformers does not read them either; the live test below compares logits."""
  assert _read("llama", position_embedding_type="absolute", no_rope_layers=[1, 0] * 4) == _read("llama")
  assert _read("llama", attention_multiplier=3.0, final_logit_softcapping=3.0) == _read("llama")
  assert _read("mistral", use_sliding_window=False) == _read("mistral")
  assert _read("mistral", attention_bias=True) == _read("mistral")
  assert _read("qwen3", mlp_bias=True) == _read("qwen3") != _read("qwen3", attention_bias=True)
  assert _read("gemma2", sliding_window_pattern=3) == _read("gemma2")
  assert _read("mixtral", norm_topk_prob=False) == _read("mixtral")
  assert _read("qwen3_moe", norm_topk_prob=True) != _read("qwen3_moe", norm_topk_prob=False)
  assert _read("gemma3_text", sliding_window_pattern=3).windows == (4096, 4096, None) * 2 + (4096,)


def test_gpt_oss_as_its_makers_and_transformers_5_write_it():
  yarn = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
  yarn |= {"original_max_position_embeddings": 4096}
  old = _read(
    "gpt_oss", rope_theta=150000, rope_scaling=yarn, quantization_config={"quant_method": "mxfp4"}, attention_bias=True,
    num_local_experts=32, experts_per_token=4, num_experts_per_tok=4, swiglu_limit=7.0, sliding_window=128,
  )  # fmt: skip
  new = _read("gpt_oss", num_local_experts=32, rope_parameters=yarn | {"rope_theta": 150000.0})
  assert old == new == _read("gpt_oss", num_local_experts=32)
  assert old.rope_scaling == RopeScaling("yarn", 32.0, 1.0, 32.0, 4096, 0.1 * math.log(32) + 1, False)
  assert old.windows == (128, None, 128, None, 128, None, 128)
  assert old.attention_sinks and old.normalise_experts and old.clamped_gate == (1.702, 7.0)
  assert (old.head_dim, old.experts_per_token, old.rope_theta) == (64, 4, 150000.0)
  assert set(_read("gpt_oss", attention_bias=False).biases) == {"router", "expert_gate", "expert_up", "expert_down"}


@pytest.mark.parametrize(
  ("model_type", "options", "message"),
  [
    ("qwen2_moe", {}, "model_type='qwen2_moe' is not supported; this decoder reads 'llama'"),
    ("qwen3_5", {}, "config.json of 'qwen3_5' has no text_config"),
    ("gemma3", {"text_config": []}, "config.json of 'gemma3' has no text_config"),
    ("gemma3", {"text_config": {"model_type": 3}}, "model_type=3; it must be a text"),
    (["llama"], {}, r"model_type=\['llama'\]; it must be a text"),
    ("gemma4_unified", {"text_config": {}}, "'gemma4_unified' is not supported: its senses share one decoder"),
    ("qwen3_next", {}, "'qwen3_next' is not supported: its delta nets hold their projections in another order"),
    ("qwen3_5_text", {"layer_types": ["mamba"] * 7}, "names .'mamba'."),
    ("gemma4_text", {"num_kv_shared_layers": 6}, "num_kv_shared_layers=6 leaves no block of its kind"),
    ("gemma4_text", {"per_layer_config": {"0": {"head_dim": 4}}}, "per_layer_config gives block 0 sizes that other"),
    ("gemma4_text", {"use_bidirectional_attention": "all"}, "use_bidirectional_attention='all'"),
    (None, {}, "model_type=None"),
    ("llama", {"rope_scaling": {"rope_type": "proportional", "factor": 4.0}}, "rope_type='proportional'"),
    ("llama", {"rope_scaling": {"type": "dynamic"}}, "no 'factor'"),
    ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, "1 factors for 4"),
    ("granitemoehybrid", {"num_local_experts": 4}, "num_local_experts=4"),
    ("granitemoehybrid", {"num_local_experts": 0, "layer_types": ["mamba"] * 7}, "names .'mamba'."),
    ("qwen3_moe", {"mlp_only_layers": [1]}, "mlp_only_layers"),
    ("qwen3_moe", {"num_experts_per_tok": 200}, "experts_per_token=200 must be 1 to num_experts=128"),
    ("smollm3", {"no_rope_layers": [1, 0]}, "rope_layers names 2 blocks.*no_rope_layers"),
    ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "no 'low_freq_factor'"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    ("llama", {"hidden_act": "relu"}, "hidden_act='relu'"),
    ("llama", {"num_local_experts": 8}, "num_local_experts=8"),
    ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    ("llama", {"quantization_config": {"quant_method": "mxfp4"}}, "quantization_config"),
    ("gpt_oss", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    ("gpt_oss", {"quantization_config": "mxfp4"}, "quantization_config"),
    ("llama", {"hidden_size": "32"}, "hidden_size='32'"),
    ("llama", {"num_hidden_layers": 0}, "num_hidden_layers=0"),
    ("llama", {"num_hidden_layers": True}, "num_hidden_layers=True"),
    ("mistral", {"num_hidden_layers": 10**12}, "num_hidden_layers=1000000000000, more than any decoder has"),
    ("llama", {"vocab_size": 10**15}, "vocab_size=1000000000000000, more than any"),
    ("llama", {"rms_norm_eps": None}, "rms_norm_eps=None; it must be a positive number"),
    ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps=nan; it must be a positive number"),
    ("llama", {"rope_theta": 0}, "rope_theta=0; it must be a positive number"),
    ("olmo3", {"rope_local_base_freq": -1}, "rope_local_base_freq=-1; it must be a positive number"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 0}}, "factor=0; it must be a positive number"),
    (
      "llama",
      {"rope_scaling": LLAMA31 | {"low_freq_factor": "1"}},
      "low_freq_factor='1'; it must be a positive number",
    ),
    ("llama", {"num_key_value_heads": 2.0}, "num_key_value_heads=2.0; it must be a positive whole number"),
    ("llama", {"head_dim": 8.0}, "head_dim=8.0; it must be a positive whole number"),
    ("mistral", {"sliding_window": "8"}, "sliding_window='8'; it must be a positive whole number"),
    ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar=0; it must be a positive number"),
    (
      "llama",
      {"rope_scaling": LLAMA31 | {"original_max_position_embeddings": "16"}},
      "original_max_position_embeddings='16'; it must be a positive whole number",
    ),
    (
      "llama",
      {"quantization_config": {"quant_method": "compressed-tensors", "ignore": ["layer"] * 200}},
      "quantization_config='compressed-tensors' is not supported; give the model's unquantised weights$",
    ),
    ("llama", {"tie_word_embeddings": "false"}, "tie_word_embeddings='false'; it must be true or false"),
    ("llama", {"attention_bias": "false"}, "attention_bias='false'"),
    ("llama", {"rope_scaling": "yarn"}, "rope_scaling='yarn'; it must be an object"),
    ("qwen2", {"layer_types": ["linear_attention", "full_attention"]}, "names .'linear_attention'."),
    ("qwen2", {"use_sliding_window": "false", "sliding_window": 8}, "use_sliding_window='false'"),
    ("llama", {"num_key_value_heads": 3}, "not a multiple"),
    ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation='gelu'"),
    ("gemma2", {"layer_types": ["full_attention"] * 6 + ["sliding_attention"] * 2}, "names 8 blocks"),
    ("gemma2", {"layer_types": ["chunked_attention"] * 7}, "chunked_attention"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    ("gemma3_text", {"rope_parameters": {"sliding_attention": {"rope_type": "linear"}}}, "sliding_attention"),
  ],
)
def test_what_is_not_computed_is_named(model_type, options, message):
  with pytest.raises(InputError, match=message) as caught:
    _read(model_type, **options)
  assert "\n" not in str(caught.value)
  assert "wrong kind" in message or "wrong kind" not in str(caught.value)  # a sentence of its own


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers", "rms_norm_eps"])
def test_a_missing_size_is_named(key):
  with pytest.raises(InputError, match=f"no '{key}'"):
    hugging_face.from_hugging_face({k: v for k, v in SIZES.items() if k != key} | {"model_type": "llama"})


YARN = {"rope_type": "yarn", "rope_theta": 50.0, "factor": 4.0}
# Golden checkpoint and changes of its config.json; a key with None goes.
ODD = [
  ("llama2", {"position_embedding_type": "absolute", "no_rope_layers": [1, 0], "attn_logit_softcapping": 2.0}),
  ("llama2", {"attention_multiplier": 3.0, "query_pre_attn_scalar": 4, "hidden_activation": "gelu_pytorch_tanh"}),
  ("mistral", {"use_sliding_window": False, "attention_bias": True, "mlp_bias": True}),
  ("gemma2", {"sliding_window_pattern": 3, "layer_types": None}),
  ("mixtral", {"norm_topk_prob": False}),
  ("gpt_oss", {"norm_topk_prob": False}),
  ("qwen3_5_moe", {"norm_topk_prob": False}),
  ("qwen2", {"rope_parameters": YARN, "original_max_position_embeddings": 16}),
  ("qwen2", {"rope_parameters": YARN | {"original_max_position_embeddings": 8}, "original_max_position_embeddings": 16}),
  ("llama3", {"original_max_position_embeddings": 8}),
  ("qwen3_5", {"rope_parameters": YARN | {"original_max_position_embeddings": 16, "partial_rotary_factor": 0.5}}),
  ("ministral3", {"rope_parameters": YARN | {"llama_4_scaling_beta": 0.5}, "max_position_embeddings": 8}),
  ("gemma4", {"rope_parameters": {
    "full_attention": {"rope_type": "default", "rope_theta": 50.0, "partial_rotary_factor": 0.5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
  }}),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
@pytest.mark.parametrize(("family", "changes"), ODD)
def test_odd_configs_mean_what_they_mean_to_transformers(family, changes, tmp_path):
  import torch
  import transformers

  shutil.copytree(FAMILIES / family, tmp_path, dirs_exist_ok=True)
  content = json.loads((tmp_path / "config.json").read_text()) | changes
  content = {key: value for key, value in content.items() if value is not None}
  (tmp_path / "config.json").write_text(json.dumps(content))
  tokens = np.random.default_rng(0).integers(3, content["vocab_size"], (2, 24))
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
  with torch.no_grad():
    expected = theirs.eval()(input_ids=torch.tensor(tokens)).logits.numpy()
  ours = verify_export.jax_logits(*reversed(conversion.load(tmp_path)), tokens, np.ones_like(tokens, bool))
  np.testing.assert_allclose(ours, expected.reshape(ours.shape), atol=1e-4)
