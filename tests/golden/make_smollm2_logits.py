"""Makes smollm2_logits.npz: PyTorch's logits and greedy generations for the dequantised demo model.

Needs PyTorch, which nothing else here does, so give it an environment of its own (about 1 minute on 2 cores):

  python -m venv /tmp/golden && /tmp/golden/bin/pip install torch transformers gguf
  /tmp/golden/bin/python tests/golden/make_smollm2_logits.py SmolLM2-135M-Instruct.Q4_1.gguf

Arrays, with N tokens in S sequences, one behind the other, and P chat prompts:

  token_ids [N], lengths [S]       the sequences; each starts anew at position 0
  columns [C]                      vocabulary ids whose logits are stored
  logits [N, C]                    float32
  logsumexp [N], argmax [N]        over the whole vocabulary
  margin [N]                       largest logit minus the second largest: how firm the argmax is
  prompt_ids, prompt_lengths [P]   chat prompts, one behind the other
  greedy_ids, greedy_lengths [P]   what greedy decoding answers, EOS included, at most 32 tokens each
  greedy_margin                    as margin, for greedy_ids
  prompts [P]                      the user messages, as text
"""

import pathlib
import sys

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers import AutoTokenizer

OUTPUT = pathlib.Path(__file__).with_name("smollm2_logits.npz")
NUM_COLUMNS = 2048
MAX_NEW_TOKENS = 32

SEQUENCES = [
  "The harbour wakes before the town does. Long before the bakeries open, the boats come in on the tide, and "
  "men in yellow coats throw ropes to one another without a word. Gulls settle on the roofs to wait. By six the "
  "catch is weighed and the ice is shovelled; by seven the lorries have gone inland, and the quay is quiet "
  "again, wet and shining, as if nothing had happened there at all.",
  "To cook lentils for 4 people, rinse 300 g of them, cover with 900 ml of cold water and add one bay leaf. "
  "Simmer for 25 minutes, then stir in 2 spoons of olive oil, salt and the juice of half a lemon.\n\nNotes:\n"
  "- Red lentils need only 12 minutes.\n- Don't add salt earlier: it's slower that way.\n",
  "def mean(values):\n  total = 0.0\n  for value in values:\n    total += value\n  return total / len(values)\n\n\n"
  "assert mean([1, 2, 3]) == 2.0\n",
  "<|im_start|>user\nWhich is heavier, a kilogram of feathers or a kilogram of iron?<|im_end|>\n"
  "<|im_start|>assistant\nNeither: both weigh one kilogram. The feathers only take up more room.<|im_end|>\n",
]

PROMPTS = [
  "What is the capital of France?",
  "Name one US state. Reply with only the name.",
  "Explain in two sentences why the sky is blue.",
]


def load_model(path: pathlib.Path) -> torch.nn.Module:
  """Loads the GGUF file in float32, and checks its weights against gguf's own dequantisation."""
  model = AutoModelForCausalLM.from_pretrained(
    path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
  ).eval()
  weights = model.state_dict()
  tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
  for theirs, ours, heads in [
    ("token_embd.weight", "model.embed_tokens.weight", None),
    ("output_norm.weight", "model.norm.weight", None),
    ("blk.3.attn_norm.weight", "model.layers.3.input_layernorm.weight", None),
    ("blk.3.ffn_down.weight", "model.layers.3.mlp.down_proj.weight", None),
    ("blk.29.attn_v.weight", "model.layers.29.self_attn.v_proj.weight", None),
    (
      "blk.29.attn_q.weight",
      "model.layers.29.self_attn.q_proj.weight",
      model.config.num_attention_heads,
    ),
    (
      "blk.29.attn_k.weight",
      "model.layers.29.self_attn.k_proj.weight",
      model.config.num_key_value_heads,
    ),
  ]:
    expected = gguf.quants.dequantize(tensors[theirs].data, tensors[theirs].tensor_type)
    if heads:  # Llama files interleave the two halves of each head that rotary embedding rotates together.
      rows, width = expected.shape
      expected = expected.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)
    np.testing.assert_array_equal(weights[ours].numpy(), expected, err_msg=theirs)
  return model


def margins(logits: np.ndarray) -> np.ndarray:
  """Returns by how much the largest logit leads, [N, V] -> [N]."""
  top = np.partition(logits, -2, axis=-1)[:, -2:]
  return top.max(-1) - top.min(-1)


def lengths(rows: list) -> np.ndarray:
  """Returns the length of each row."""
  return np.array([len(row) for row in rows], np.int32)


def main(path: pathlib.Path) -> None:
  """Writes the golden file."""
  model = load_model(path)
  tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)

  sequences = [tokenizer.encode(text, add_special_tokens=False) for text in SEQUENCES]
  with torch.no_grad():
    logits = np.concatenate([model(torch.tensor([ids])).logits[0].numpy() for ids in sequences])
  specials = np.arange(17)
  others = np.random.default_rng(0).choice(np.arange(17, logits.shape[1]), NUM_COLUMNS - 17, replace=False)
  columns = np.concatenate([specials, np.sort(others)])

  answers, answer_margins = [], []
  messages = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
  chats = [tokenizer.apply_chat_template(m, add_generation_prompt=True, return_dict=False) for m in messages]
  for ids in chats:
    prompt = torch.tensor([ids])
    mask = torch.ones_like(prompt)
    output = model.generate(prompt, attention_mask=mask, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    answers.append(output[0, len(ids) :].numpy())
    with torch.no_grad():
      answer_margins.append(margins(model(output).logits[0, len(ids) - 1 : -1].numpy()))
    print(repr(tokenizer.decode(answers[-1])))

  np.savez_compressed(
    OUTPUT,
    token_ids=np.concatenate(sequences).astype(np.int32),
    lengths=lengths(sequences),
    columns=columns.astype(np.int32),
    logits=logits[:, columns].astype(np.float32),
    logsumexp=torch.logsumexp(torch.tensor(logits).double(), -1).numpy().astype(np.float32),
    argmax=logits.argmax(-1).astype(np.int32),
    margin=margins(logits),
    prompts=np.array(PROMPTS),
    prompt_ids=np.concatenate(chats).astype(np.int32),
    prompt_lengths=lengths(chats),
    greedy_ids=np.concatenate(answers).astype(np.int32),
    greedy_lengths=lengths(answers),
    greedy_margin=np.concatenate(answer_margins),
  )
  print(f"{OUTPUT}: {len(logits)} tokens, {OUTPUT.stat().st_size / 1e6:.1f} MB")
  print(f"smallest margins: {margins(logits).min():.4f} of logits, {np.concatenate(answer_margins).min():.4f} greedy")


if __name__ == "__main__":
  if len(sys.argv) != 2:
    sys.exit(__doc__)
  main(pathlib.Path(sys.argv[1]))
