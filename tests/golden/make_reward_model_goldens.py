"""Makes reward_models/: tiny random sequence classifiers written by PyTorch transformers, with their scores.

Needs PyTorch, like `make_family_goldens.py` (a few seconds):

  /tmp/golden/bin/python tests/golden/make_reward_model_goldens.py

reward_models/NAME/ holds the output of `save_pretrained` and expected.npz. The latter has token_ids [N] of S
concatenated sequences, lengths [S], and the scores [S] from one batch padded on that side, `left` and `right`. The last
sequence ends with the padding token, before which transformers reads the score.
"""

import pathlib
import shutil

import numpy as np
import torch
import transformers

FOLDER = pathlib.Path(__file__).with_name("reward_models")
PAD = 5
SIZES = {
  "vocab_size": 64,
  "hidden_size": 16,
  "intermediate_size": 24,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 64,
  "pad_token_id": PAD,
  "bos_token_id": 1,
  "eos_token_id": 2,
  "num_labels": 1,
}
CASES = {
  "llama": ("LlamaConfig", {"tie_word_embeddings": False}),
  "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
}
LENGTHS = (13, 17, 7, 9)


def random_classifier(kind: str, options: dict) -> torch.nn.Module:
  """A classifier with all parameters random: norms around 1, biases around 0."""
  config = getattr(transformers, kind)(**SIZES | options)
  model = transformers.AutoModelForSequenceClassification.from_config(config)
  generator = torch.Generator().manual_seed(11)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      noise = torch.randn(parameter.shape, generator=generator)
      scale = 0.4 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
      parameter.copy_((1.0 if "norm" in name else 0.0) + scale * noise)
  return model


def sequences(seed: int = 3) -> list[list[int]]:
  """Random token ids without the padding token, but for the last sequence's last two."""
  rng = np.random.default_rng(seed)
  rows = [(6 + rng.integers(0, SIZES["vocab_size"] - 6, length)).tolist() for length in LENGTHS]
  rows[-1][-2:] = [PAD, PAD]
  return rows


@torch.no_grad()
def scores(model: torch.nn.Module, rows: list[list[int]], side: str) -> np.ndarray:
  """Scores [S] from one batch padded on the given side."""
  width = max(map(len, rows)) + 2
  tokens, mask = torch.full((len(rows), width), PAD), torch.zeros((len(rows), width), dtype=torch.long)
  for index, row in enumerate(rows):
    place = slice(0, len(row)) if side == "right" else slice(width - len(row), None)
    tokens[index, place], mask[index, place] = torch.tensor(row), 1
  positions = (mask.cumsum(1) - 1).clamp(min=0)
  return (
    model.eval()(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False).logits[:, 0].numpy()
  )


if __name__ == "__main__":
  for name, (kind, options) in CASES.items():
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    random_classifier(kind, options).save_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    rows = sequences()
    found = {side: scores(model, rows, side) for side in ("left", "right")}
    ids = np.concatenate(rows).astype(np.int32)
    np.savez_compressed(folder / "expected.npz", token_ids=ids, lengths=np.array(LENGTHS, np.int32), **found)
    print(name, found, np.abs(found["left"] - found["right"]).max())
