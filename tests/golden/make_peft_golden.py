"""Makes tests/golden/peft/: tiny Llama and Qwen 2 bases with adapters that peft wrote, and PyTorch's logits.

python tests/golden/make_peft_golden.py          # needs torch, transformers and peft; no test does
"""

import pathlib
import shutil
import sys

import numpy as np
import peft
import torch
import transformers

FOLDER = pathlib.Path(__file__).parent / "peft"
SIZES = dict(
  vocab_size=24,
  hidden_size=8,
  intermediate_size=12,
  num_hidden_layers=2,
  num_attention_heads=2,
  num_key_value_heads=1,
  max_position_embeddings=64,
  tie_word_embeddings=True,
)
TOKENS = [[1, 5, 9, 20, 3, 7], [2, 2, 23, 0, 11, 4]]
TARGETS = {
  "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
  "qwen2": ["q_proj", "v_proj", "down_proj"],
}


def make(family: str) -> None:
  """Writes one family's base, adapter and logits."""
  torch.manual_seed(0)
  config = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config}[family](**SIZES)
  model = transformers.AutoModelForCausalLM.from_config(config)
  for value in model.parameters():
    torch.nn.init.normal_(value, std=0.3)
  folder = FOLDER / family
  shutil.rmtree(folder, ignore_errors=True)
  model.save_pretrained(folder / "base")
  (folder / "base" / "generation_config.json").unlink(missing_ok=True)
  adapted = peft.get_peft_model(
    model, peft.LoraConfig(r=2, lora_alpha=6, target_modules=TARGETS[family], task_type="CAUSAL_LM")
  )
  for name, value in adapted.named_parameters():
    if "lora_" in name:
      torch.nn.init.normal_(value, std=0.3)
  adapted.peft_config["default"].base_model_name_or_path = None
  adapted.save_pretrained(folder / "adapter")
  (folder / "adapter" / "README.md").unlink(missing_ok=True)
  np.savez(folder / "logits.npz", tokens=np.array(TOKENS), logits=logits(adapted))


def logits(model) -> np.ndarray:
  """Logits of the fixed tokens."""
  with torch.no_grad():
    return model(torch.tensor(TOKENS)).logits.numpy()


def save_logits_of(base: str, adapter: str, target: str) -> None:
  """Saves the logits of a base with an adapter that another program wrote."""
  model = transformers.AutoModelForCausalLM.from_pretrained(base)
  np.savez(target, logits=logits(peft.PeftModel.from_pretrained(model, adapter)))


if __name__ == "__main__":
  if len(sys.argv) == 4:
    save_logits_of(*sys.argv[1:])
  else:
    for name in TARGETS:
      make(name)
