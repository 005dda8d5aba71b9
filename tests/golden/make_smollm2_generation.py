"""Makes smollm2_generation.json: greedy answers of the demo model by PyTorch transformers, as token ids.

The model is the demo model as this package exports it, so that the export is tested too. Needs PyTorch and this
package, so use a separate environment (about 3 minutes on 2 cores):

  python -m venv /tmp/golden && /tmp/golden/bin/pip install torch -e ".[convert]"
  /tmp/golden/bin/python tests/golden/make_smollm2_generation.py

Each prompt has its chat's token ids, at most 64 tokens of the answer with EOS, and the smallest margin of the largest
logit over the second among these tokens.
"""

import json
import pathlib
import tempfile

import torch
import transformers

from qempo_jax.data import tokenization
from qempo_jax.models import conversion
from qempo_jax.models import demo_model
from qempo_jax.models import export
from qempo_jax.models import verify_export

OUTPUT = pathlib.Path(__file__).with_name("smollm2_generation.json")
MAX_NEW_TOKENS = 64
# A smaller margin is decided by the order of float32 sums, so that the prompt would test the machine.
LEAST_MARGIN = 1e-3
PROMPTS = [
  "What is the capital of France?",
  "Explain in two sentences why the sky is blue.",
  "Write a short poem about a lighthouse in winter.",
  "List five things to pack for a day at the sea.",
  "What is 17 plus 25? Show how you get there.",
  "How many days are there in a leap year?",
  "Write a Python function that returns the largest of three numbers.",
  "Translate into French: The cat sleeps on the red chair.",
  "Give one argument for and one against school uniforms.",
  "Tell me a story about a clock that runs backwards.",
]


@torch.no_grad()
def answer(model: torch.nn.Module, prompt: list[int], stops: list[int]) -> tuple[list[int], float]:
  """Greedy tokens, and the smallest lead of one of them over the second best."""
  output = model.generate(
    torch.tensor([prompt]),
    attention_mask=torch.ones((1, len(prompt)), dtype=torch.long),
    max_new_tokens=MAX_NEW_TOKENS,
    do_sample=False,
    eos_token_id=stops,
    pad_token_id=stops[0],
  )
  logits = model(output).logits[0, len(prompt) - 1 : -1]
  best = logits.topk(2, dim=-1).values
  return output[0, len(prompt) :].tolist(), float((best[:, 0] - best[:, 1]).min())


def main() -> None:
  """Writes the golden file."""
  path = demo_model.demo_model_path()
  config, params = conversion.load(path)
  tokenizer = tokenization.load_tokenizer(path)
  stops = list(tokenization.stop_token_ids(tokenizer))
  with tempfile.TemporaryDirectory() as scratch:
    folder = export.export_model(pathlib.Path(scratch) / "model", params, config, tokenizer=tokenizer, dtype="float32")
    verified = verify_export.verify_export(folder, params, config, dtype="float32", tolerance=1e-3)
    print(verified.message)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    answers = []
    for prompt in PROMPTS:
      messages = [{"role": "user", "content": prompt}]
      ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
      if ids != tokenization.encode_chat(tokenizer, prompt):
        raise AssertionError(f"the exported tokenizer encodes {prompt!r} in another way")
      tokens, margin = answer(model, ids, stops)
      if margin < LEAST_MARGIN:
        raise AssertionError(f"{prompt!r} leads to a tie within {margin:.1e}; choose another prompt")
      answers.append({"prompt": prompt, "prompt_ids": ids, "answer_ids": tokens, "margin": round(margin, 4)})
      print(f"{margin:.4f} {theirs.decode(tokens)!r}")
  versions = {"torch": torch.__version__, "transformers": transformers.__version__}
  golden = {"stop_tokens": stops, "versions": versions, "answers": answers}
  OUTPUT.write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
  main()
