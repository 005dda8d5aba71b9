"""Makes minilm.json: sentence embeddings by PyTorch and transformers, for the JAX encoder to equal.

pip install torch transformers
python tests/golden/make_minilm_golden.py FOLDER     # with config.json, model.safetensors, tokenizer.json
"""

import json
import pathlib
import sys

import torch
from transformers import AutoTokenizer
from transformers import BertModel

OUTPUT = pathlib.Path(__file__).with_name("minilm.json")
TEXTS = [
  "A bird.",
  "The bird sings in the morning.",
  "Stocks fell sharply on Monday, wiping out gains. " * 40,
  "na\u00efve CAF\u00c9 42% \u65e5\u672c \U0001f600",
  "",
]


def main(folder: str) -> None:
  """Writes the unit-length means of the last hidden states over the tokens, cut at 256."""
  model, tokenizer = BertModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
  batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=256, return_tensors="pt")
  with torch.no_grad():
    hidden = model(**batch).last_hidden_state
  mask = batch["attention_mask"][..., None].float()
  vectors = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))
  rows = [[round(float(value), 8) for value in row] for row in vectors]
  OUTPUT.write_text(json.dumps({"texts": TEXTS, "vectors": rows}) + "\n", encoding="utf-8")


if __name__ == "__main__":
  main(sys.argv[1])
