"""The language model within a model of several senses, written by PyTorch transformers: read, exported and loaded there."""

import importlib.util
import json

import numpy as np
import pytest

from qempo_jax.errors import InputError
from qempo_jax.models import conversion
from qempo_jax.models import export
from qempo_jax.models import reward_checkpoint
from qempo_jax.models import reward_head
from qempo_jax.models import verify_export

pytestmark = [
  pytest.mark.slow,  # live
  pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed"),
]
TEXT = {
  "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2,
  "head_dim": 8, "num_hidden_layers": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TOWER = {
  "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
  "patch_size": 14,
}  # fmt: skip
DELTA = {
  "linear_key_head_dim": 4, "linear_value_head_dim": 6, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
  "layer_types": ["linear_attention", "full_attention"],
  "rope_parameters": {
    "rope_type": "default", "rope_theta": 50.0, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0],
  },
}  # fmt: skip
SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
QWEN_TOWER = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
# Name -> (language model, tower, other keys).
CASES = {
  "Qwen3_5": (DELTA, QWEN_TOWER, {}),
  "Qwen3_5Moe": (
    DELTA
    | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 20},
    QWEN_TOWER,
    {},
  ),
  "Gemma3": (SLIDING, TOWER, {"mm_tokens_per_image": 4}),
  "Gemma4": (
    SLIDING | {"global_head_dim": 16, "hidden_size_per_layer_input": 0},
    TOWER | {"num_key_value_heads": 2, "head_dim": 8},
    {"audio_config": None},
  ),
  "Mistral3": ({"model_type": "mistral"}, TOWER | {"model_type": "pixtral", "head_dim": 8}, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_language_model_is_read_and_written_alone(name, tmp_path):
  import torch
  import transformers

  text, tower, others = CASES[name]
  config = getattr(transformers, f"{name}Config")(text_config=TEXT | text, vision_config=tower, **others)
  torch.manual_seed(0)
  whole = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
  with torch.no_grad():
    for parameter in whole.parameters():
      parameter.add_(0.3 * torch.randn_like(parameter) / max(parameter.shape[-1:] or (1,)) ** 0.5)
  whole.save_pretrained(tmp_path / "theirs")

  config, params = conversion.load(tmp_path / "theirs")
  tokens = np.random.default_rng(0).integers(3, 64, (2, 9))
  with torch.no_grad():
    expected = whole(input_ids=torch.tensor(tokens)).logits.numpy().reshape(-1, 64)
  ours = verify_export.jax_logits(params, config, tokens, np.ones_like(tokens, bool))
  np.testing.assert_allclose(ours, expected, atol=1e-4)

  if name != "Mistral3":  # AutoModelForCausalLM does not take it.
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "alone")
    config_alone, params_alone = conversion.load(tmp_path / "alone")
    ours = verify_export.jax_logits(params_alone, config_alone, tokens, np.ones_like(tokens, bool))
    np.testing.assert_allclose(ours, expected, atol=1e-4)

  content = json.loads((tmp_path / "theirs" / "config.json").read_text())
  for key in (content, content["text_config"]):
    key.pop("tie_word_embeddings", None)
  (tmp_path / "theirs" / "config.json").write_text(json.dumps(content))
  assert conversion.load(tmp_path / "theirs")[0] == config
  (tmp_path / "theirs" / "config.json").write_text(
    json.dumps(content | {"quantization_config": {"quant_method": "fp8"}})
  )
  with pytest.raises(InputError, match="quantization_config="):
    conversion.load(tmp_path / "theirs")
  (tmp_path / "theirs" / "config.json").write_text(json.dumps(content))

  for source in (tmp_path / "theirs", None):
    out = export.export_model(tmp_path / f"ours-{source is None}", params, config, source=source)
    alone = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    assert type(alone).__name__ == ("MistralForCausalLM" if name == "Mistral3" else f"{name}ForCausalLM")
    with torch.no_grad():
      np.testing.assert_allclose(alone(input_ids=torch.tensor(tokens)).logits.reshape(-1, 64), expected, atol=1e-5)


def test_a_classifier_of_several_senses_scores_as_there(tmp_path):
  import torch
  import transformers

  text, tower, others = CASES["Gemma3"]
  config = transformers.Gemma3Config(text_config=TEXT | text, vision_config=tower, num_labels=1, **others)
  torch.manual_seed(0)
  whole = transformers.AutoModelForSequenceClassification.from_config(config).eval()
  whole.save_pretrained(tmp_path)
  tokens = np.random.default_rng(0).integers(3, 64, (2, 9))
  with torch.no_grad():
    expected = whole(input_ids=torch.tensor(tokens)).logits.numpy()
  config, params, _ = reward_checkpoint.load(tmp_path)
  ours = reward_head.score_rows(params, config, tokens, np.ones_like(tokens, bool), np.full(2, 8))
  np.testing.assert_allclose(ours, expected, atol=1e-5)
