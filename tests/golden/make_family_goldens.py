"""Makes families/: one tiny random checkpoint a family, written by PyTorch transformers, with its logits.

Needs PyTorch, which nothing else here does, so give it an environment of its own (about 1 minute on 2 cores):

  python -m venv /tmp/golden && /tmp/golden/bin/pip install torch transformers safetensors
  /tmp/golden/bin/python tests/golden/make_family_goldens.py [NAME ...]      # all, or those named

families/NAME/ holds what `save_pretrained` writes (config.json, safetensors) and expected.npz, with N tokens in S
sequences, one behind the other:

  token_ids [N], lengths [S]       the sequences; each starts anew at position 0
  prompt_lengths [S]               how many of their tokens are a prompt; the first two share theirs
  left, right [N, V]               float32 logits from one batch, padded on that side

Weights, norms and biases are all random, so that the logits depend on every option. Weights are rounded to the stored
type before the logits are computed in float32.
"""

import json
import pathlib
import shutil
import sys

import numpy as np
import safetensors.torch
import torch
import transformers

FOLDER = pathlib.Path(__file__).with_name("families")
SIZES = {
  "vocab_size": 64,
  "hidden_size": 16,
  "intermediate_size": 24,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 64,
  "pad_token_id": 0,
  "bos_token_id": 1,
  "eos_token_id": 2,
}
PROMPT_LENGTHS, LENGTHS = (6, 6, 3), (13, 17, 7)
LLAMA3 = {
  "rope_type": "llama3",
  "rope_theta": 500.0,
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 16,
}
GEMMA3_ROPE = {
  "full_attention": {"rope_type": "linear", "rope_theta": 1e4, "factor": 8.0},
  "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
}
YARN = {"rope_type": "yarn", "rope_theta": 50.0, "factor": 8.0, "original_max_position_embeddings": 16}
SLIDING, FULL = "sliding_attention", "full_attention"
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2}
GRANITE = {
  "attention_multiplier": 0.3, "embedding_multiplier": 6.0, "residual_multiplier": 0.4, "logits_scaling": 0.7,
  "tie_word_embeddings": True,
}  # fmt: skip
UNTIED = {"tie_word_embeddings": False}
GPT_OSS = {
  "head_dim": 8, "sliding_window": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "swiglu_alpha": 1.3,
  "swiglu_limit": 0.6, "rope_parameters": YARN | {"beta_fast": 3.0, "beta_slow": 0.5, "truncate": False},
}  # fmt: skip
GEMMA4 = {
  "head_dim": 8, "global_head_dim": 16, "sliding_window": 4, "num_hidden_layers": 4,
  "layer_types": [SLIDING, FULL, SLIDING, FULL], "tie_word_embeddings": True, "hidden_size_per_layer_input": 0,
  "rope_parameters": {
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 50.0},
    SLIDING: {"rope_type": "default", "rope_theta": 10.0},
  },
}  # fmt: skip
QWEN35 = {
  "head_dim": 8, "num_hidden_layers": 4, "layer_types": ["linear_attention", FULL] * 2, "linear_key_head_dim": 4,
  "linear_value_head_dim": 6, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_conv_kernel_dim": 3,
  "rope_parameters": {"rope_type": "default", "rope_theta": 50.0, "partial_rotary_factor": 0.5},
}  # fmt: skip
FACTORS = ("layer_scalar", "router.scale", "per_expert_scale", "linear_attn.norm.weight")
MXFP4 = ("gpt_oss_mxfp4",)  # Cases with random MXFP4 experts.

# Name -> (configuration class, its options beyond SIZES, stored type, largest shard).
CASES = {
  "llama2": ("LlamaConfig", {"num_key_value_heads": 4, "tie_word_embeddings": False}, torch.float32, "1GB"),
  "llama3": (
    "LlamaConfig",
    {"head_dim": 8, "rope_parameters": LLAMA3, "tie_word_embeddings": True},
    torch.bfloat16,
    "1GB",
  ),
  "llama_biases": (
    "LlamaConfig",
    {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    torch.float32,
    "1GB",
  ),
  "mistral": (
    "MistralConfig",
    {"sliding_window": 4, "tie_word_embeddings": False},
    torch.float16,
    "1GB",
  ),
  "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}, torch.bfloat16, "1GB"),
  "qwen2_windows": (
    "Qwen2Config",
    {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1, "tie_word_embeddings": False},
    torch.bfloat16,
    "1GB",
  ),
  "qwen3": ("Qwen3Config", {"head_dim": 8, "tie_word_embeddings": False}, torch.float16, "6KB"),
  "olmo2": ("Olmo2Config", {"tie_word_embeddings": False}, torch.float32, "12KB"),
  "gemma2": (
    "Gemma2Config",
    {
      "head_dim": 8,
      "sliding_window": 4,
      "num_hidden_layers": 4,
      "query_pre_attn_scalar": 3,
      "attn_logit_softcapping": 1.5,
      "final_logit_softcapping": 2.5,
    },
    torch.bfloat16,
    "1GB",
  ),
  "gemma3": (
    "Gemma3TextConfig",
    {
      "head_dim": 8,
      "sliding_window": 4,
      "num_hidden_layers": 4,
      "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
      "query_pre_attn_scalar": 3,
      "rope_parameters": GEMMA3_ROPE,
    },
    torch.bfloat16,
    "1GB",
  ),
  "smollm3": ("SmolLM3Config", {"no_rope_layers": [1, 0, 1], "tie_word_embeddings": True}, torch.bfloat16, "1GB"),
  "smollm3_windows": (
    "SmolLM3Config",
    {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 4} | UNTIED,
    torch.bfloat16,
    "1GB",
  ),
  "olmo3": (
    "Olmo3Config",
    {
      "sliding_window": 4,
      "layer_types": [SLIDING, FULL, SLIDING],
      "rope_parameters": {FULL: YARN, SLIDING: {"rope_type": "default", "rope_theta": 50.0}},
    }
    | UNTIED,
    torch.float32,
    "1GB",
  ),
  "phi3": ("Phi3Config", {"sliding_window": 4} | UNTIED, torch.bfloat16, "1GB"),
  "phi4": (
    "Phi3Config",
    {
      "head_dim": 8,
      "hidden_size": 32,
      "original_max_position_embeddings": 32,
      "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 50.0,
        "partial_rotary_factor": 0.75,
        "short_factor": [1.0, 1.2, 1.5],
        "long_factor": [1.5, 3.0, 6.0],
      },
      "tie_word_embeddings": True,
    },
    torch.bfloat16,
    "7KB",
  ),
  "phi4_long": (
    "Phi3Config",
    {
      "sliding_window": None,
      "original_max_position_embeddings": 8,  # the rows are longer
      "rope_parameters": {"rope_type": "longrope", "short_factor": [1.0, 1.2], "long_factor": [1.5, 6.0]},
    }
    | UNTIED,
    torch.bfloat16,
    "1GB",
  ),
  "dynamic": (
    "LlamaConfig",
    {
      "head_dim": 8,
      "max_position_embeddings": 8,  # the rows are longer
      "rope_parameters": {"rope_type": "dynamic", "rope_theta": 50.0, "factor": 4.0},
    }
    | UNTIED,
    torch.bfloat16,
    "1GB",
  ),
  "granite": (
    "GraniteConfig",
    GRANITE,
    torch.bfloat16,
    "1GB",
  ),
  "granite4": (
    "GraniteMoeHybridConfig",
    {
      "num_local_experts": 0,
      "layer_types": ["attention"] * 3,
      "shared_intermediate_size": 20,
      "position_embedding_type": None,
      "mamba_n_heads": 4,
      **GRANITE,
    },
    torch.bfloat16,
    "1GB",
  ),
  "ministral": (
    "MinistralConfig",
    {"head_dim": 8, "sliding_window": 4, "layer_types": [SLIDING, FULL, SLIDING]} | UNTIED,
    torch.bfloat16,
    "1GB",
  ),
  "ministral3": (
    "Ministral3Config",
    {
      "head_dim": 8,
      "rope_parameters": YARN
      | {"factor": 4.0, "original_max_position_embeddings": 5, "mscale": 1.0, "mscale_all_dim": 0.5}
      | {"beta_fast": 4.0, "beta_slow": 1.0, "llama_4_scaling_beta": 0.5},
    }
    | UNTIED,
    torch.bfloat16,
    "1GB",
  ),
  "yarn": (
    "Qwen2Config",
    {"head_dim": 16, "rope_parameters": YARN | {"beta_fast": 3.0, "beta_slow": 0.5, "truncate": False}} | UNTIED,
    torch.bfloat16,
    "1GB",
  ),
  "qwen3_moe": (
    "Qwen3MoeConfig",
    {"head_dim": 8, "moe_intermediate_size": 12, "norm_topk_prob": True} | MIXTURE | UNTIED,
    torch.bfloat16,
    "7KB",
  ),
  "olmoe": ("OlmoeConfig", MIXTURE | UNTIED, torch.bfloat16, "1GB"),
  "mixtral": ("MixtralConfig", {"num_local_experts": 4, "sliding_window": 4} | UNTIED, torch.bfloat16, "1GB"),
  "gpt_oss": ("GptOssConfig", GPT_OSS | UNTIED, torch.float32, "10KB"),
  "gemma4": (
    "Gemma4TextConfig",
    GEMMA4 | {"attention_k_eq_v": True, "num_global_key_value_heads": 1, "final_logit_softcapping": 2.5},
    torch.bfloat16,
    "1GB",
  ),
  "gemma4_shared": (
    "Gemma4TextConfig",
    GEMMA4
    | {"num_hidden_layers": 6, "layer_types": [SLIDING, FULL] * 3, "num_kv_shared_layers": 3}
    | {"use_double_wide_mlp": True, "hidden_size_per_layer_input": 6, "vocab_size_per_layer_input": 64},
    torch.bfloat16,
    "1GB",
  ),
  "gemma4_moe": (
    "Gemma4TextConfig",
    GEMMA4 | {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 12},
    torch.bfloat16,
    "1GB",
  ),
  "qwen3_5": ("Qwen3_5TextConfig", QWEN35 | UNTIED, torch.bfloat16, "9KB"),
  "qwen3_5_moe": (
    "Qwen3_5MoeTextConfig",
    QWEN35 | MIXTURE | {"moe_intermediate_size": 12, "shared_expert_intermediate_size": 20} | UNTIED,
    torch.bfloat16,
    "1GB",
  ),
  "gpt_oss_mxfp4": (
    "GptOssConfig",
    GPT_OSS | {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2} | UNTIED,
    torch.bfloat16,
    "1GB",
  ),
}


def random_model(config: transformers.PreTrainedConfig, dtype: torch.dtype, seed: int = 7) -> torch.nn.Module:
  """A decoder with random parameters of one type: norms around their neutral value, biases around 0."""
  model = transformers.AutoModelForCausalLM.from_config(config)
  generator = torch.Generator().manual_seed(seed)
  neutral = 0.0 if config.model_type.startswith(("gemma2", "gemma3", "qwen3_5")) else 1.0
  factors = [pair for pair in model.named_buffers() if pair[0].endswith("layer_scalar")]
  with torch.no_grad():
    for name, parameter in [*model.named_parameters(), *factors]:
      noise = torch.randn(parameter.shape, generator=generator)
      scale = 0.4 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
      if config.model_type == "gemma4_text" and name.endswith(("q_norm.weight", "k_norm.weight")):
        parameter.copy_(0.3 + 0.1 * noise)  # Its scores are not divided: float32 would be too coarse for sharper ones.
        continue
      parameter.copy_((1.0 if name.endswith(FACTORS) else neutral if "norm" in name else 0.0) + scale * noise)
  return model.to(dtype)


def write(name: str, folder: pathlib.Path, seed: int = 7) -> None:
  """Writes a family's random checkpoint."""
  kind, options, dtype, shard = CASES[name]
  config = getattr(transformers, kind)(**SIZES | options)
  random_model(config, dtype, seed).save_pretrained(folder, max_shard_size=shard)
  (folder / "generation_config.json").unlink(missing_ok=True)
  if name in MXFP4:
    quantise(folder, np.random.default_rng(seed))


def quantise(folder: pathlib.Path, rng: np.random.Generator) -> None:
  """Replaces the experts of a checkpoint by random blocks and scales of MXFP4."""
  tensors = safetensors.torch.load_file(folder / "model.safetensors")
  for name in [name for name in tensors if name.endswith("experts.gate_up_proj") or name.endswith("experts.down_proj")]:
    experts, inputs, outputs = tensors.pop(name).shape
    shape = (experts, outputs, inputs // 32)
    tensors[f"{name}_blocks"] = torch.tensor(rng.integers(0, 256, (*shape, 16)), dtype=torch.uint8)
    tensors[f"{name}_scales"] = torch.tensor(rng.integers(122, 125, shape), dtype=torch.uint8)
  safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
  config = json.loads((folder / "config.json").read_text())
  config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
  (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


@torch.no_grad()
def logits_of(model: torch.nn.Module, rows: list[list[int]], side: str) -> np.ndarray:
  """Logits of the rows' own tokens, from one batch padded on the given side: [N, V]."""
  width = max(map(len, rows))
  tokens, mask = torch.zeros((2, len(rows), width), dtype=torch.long)
  for index, row in enumerate(rows):
    place = slice(0, len(row)) if side == "right" else slice(width - len(row), None)
    tokens[index, place], mask[index, place] = torch.tensor(row), 1
  positions = (mask.cumsum(1) - 1).clamp(min=0)
  output = model(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False).logits
  return output[mask.bool()].numpy()


def make(name: str) -> None:
  """Writes one family's folder."""
  folder = FOLDER / name
  shutil.rmtree(folder, ignore_errors=True)
  write(name, folder)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, attn_implementation="eager"
  ).eval()
  rng = np.random.default_rng(3)
  rows = [rng.integers(3, SIZES["vocab_size"], length).tolist() for length in LENGTHS]
  rows[1][: PROMPT_LENGTHS[1]] = rows[0][: PROMPT_LENGTHS[0]]
  logits = {side: logits_of(model, rows, side) for side in ("left", "right")}
  np.savez_compressed(
    folder / "expected.npz",
    token_ids=np.concatenate(rows).astype(np.int32),
    lengths=np.array(LENGTHS, np.int32),
    prompt_lengths=np.array(PROMPT_LENGTHS, np.int32),
    **logits,
  )
  size = sum(file.stat().st_size for file in folder.iterdir()) / 1e3
  apart = np.abs(logits["left"] - logits["right"]).max()
  print(f"{name}: {size:.0f} KB, logits to {np.abs(logits['left']).max():.2f}, apart by side {apart:.1e}")


if __name__ == "__main__":
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  versions = json.loads((FOLDER / "versions.json").read_text())
  for case in sys.argv[1:] or CASES:
    make(case)
    versions[case] = {"torch": torch.__version__, "transformers": transformers.__version__}
  (FOLDER / "versions.json").write_text(json.dumps(versions, indent=2, sort_keys=True) + "\n")
