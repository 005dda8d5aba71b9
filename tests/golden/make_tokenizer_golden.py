"""Makes tokenizer.json: token ids from a plain-Python encoder written for the purpose.

The encoder shares no code with the tokenizer under test. It splits with the `regex` package, maps bytes to characters
by GPT-2's table, and merges by rank, with the vocabulary and merges of a GGUF file.

  pip install gguf regex
  python tests/golden/make_tokenizer_golden.py SmolLM2-135M-Instruct.Q4_1.gguf
"""

import json
import pathlib
import sys

import gguf
import regex

OUTPUT = pathlib.Path(__file__).with_name("tokenizer.json")

TEXTS = [
  "",
  " ",
  "Hello, world!",
  "12345 and 007, 3.14159, 1,000,000; a1b2c3; 2x + 10y = 42",
  "Roman \u216b, fractions \u00bd and \u00be, x\u00b2 + y\u00b3, circled \u2460\u2461, Arabic \u0664\u0662, Thai \u0e53\u0e54",
  "I've, you're, he'll, she'd, it's, we'm, can't; IT'S, I'VE, 'tis, rock 'n' roll",
  "curly quotes: don\u2019t \u2018so\u2019 \u201cplease\u201d",
  "  two spaces,   three,    four and a trailing one ",
  "tabs\tand\t\tmore\t\n\n\nnewlines\r\nand\rreturns\n   \n",
  "\u00a0no-break\u2003em space\u3000ideographic\u200bzero width",
  "na\u00efve caf\u00e9 \u00fcber stra\u00dfe \u010de\u0161tina Espa\u00f1a",
  "e\u0301 combining and \u00e9 composed",
  "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8\u3001\u4e2d\u6587\u3002\ud55c\uad6d\uc5b4",
  "\u041f\u0440\u0438\u0432\u0435\u0442, \u03ba\u03cc\u03c3\u03bc\u03b5, \u05e9\u05dc\u05d5\u05dd, \u0645\u0631\u062d\u0628\u0627, \u0928\u092e\u0938\u094d\u0924\u0947",
  "emoji \U0001f600\U0001f680, family \U0001f468\u200d\U0001f469\u200d\U0001f467, flag \U0001f1eb\U0001f1ee, thumbs \U0001f44d\U0001f3fd",
  "def f(x):\n    return {'a': [x**2, -1.5e-3]}  # comment\n",
  "https://example.org/path?query=1&other=two#part",
  "snake_case, kebab-case, CamelCase, SCREAMING_SNAKE, ...!!! ???",
  "<b>bold</b> <|not_special|> <im_start> |im_end|",
  "<|im_start|>user\nName one US state.<|im_end|>\n<|im_start|>assistant\n",
  "<|endoftext|><|im_end|>text<|im_start|> text",
  "a" * 70 + " " + "ha" * 40 + " " + "9" * 30,
]

CONVERSATIONS = [
  [{"role": "user", "content": "Name one US state. Reply with only the name."}],
  [
    {"role": "system", "content": "Answer in French."},
    {"role": "user", "content": "How many days are in 2024?"},
    {"role": "assistant", "content": "366 jours."},
    {"role": "user", "content": "And in 2023?"},
  ],
]

# GPT-2's split; an optional space belongs to the word behind it.
WORDS = regex.compile(r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
DIGITS = regex.compile(r"\p{N}|\P{N}+")


def byte_characters() -> list[str]:
  """GPT-2's table: printable Latin-1 bytes stand for themselves, the rest for characters from U+0100 on."""
  printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
  others = iter(range(0x100, 0x200))
  return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


class PlainEncoder:
  """Byte-level BPE with digits split one by one, as slowly and plainly as it can be written."""

  def __init__(self, path: str):
    reader = gguf.GGUFReader(path)
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    merges = reader.fields["tokenizer.ggml.merges"].contents()
    self.ids = {token: i for i, token in enumerate(tokens)}
    self.ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
    specials = [token for token, kind in zip(tokens, kinds, strict=True) if kind == 3]
    self.specials = regex.compile("(" + "|".join(map(regex.escape, specials)) + ")")
    self.table = byte_characters()

  def encode(self, text: str) -> list[int]:
    """Encodes text in which special tokens may stand."""
    ids = []
    for i, part in enumerate(self.specials.split(text)):
      ids += [self.ids[part]] if i % 2 else self._encode_plain(part)
    return ids

  def _encode_plain(self, text: str) -> list[int]:
    pieces = [word for run in DIGITS.findall(text) for word in WORDS.findall(run)]
    assert "".join(pieces) == text
    return [self.ids[symbol] for piece in pieces for symbol in self._merge(piece)]

  def _merge(self, piece: str) -> list[str]:
    symbols = [self.table[byte] for byte in piece.encode("utf-8")]
    while True:
      pairs = list(zip(symbols, symbols[1:], strict=False))
      best = min(pairs, key=lambda pair: self.ranks.get(pair, float("inf")), default=None)
      if best not in self.ranks:
        return symbols
      merged, i = [], 0
      while i < len(symbols):
        step = 2 if tuple(symbols[i : i + 2]) == best else 1
        merged.append("".join(symbols[i : i + step]))
        i += step
      symbols = merged


def render(messages: list[dict[str, str]]) -> str:
  """SmolLM2's chat format, from its description: ChatML with a default system message."""
  system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
  if messages[0]["role"] != "system":
    messages = [{"role": "system", "content": system}, *messages]
  turns = (f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
  return "".join(turns) + "<|im_start|>assistant\n"


def main(path: str) -> None:
  """Writes the golden file."""
  encoder = PlainEncoder(path)
  golden = {
    "texts": [{"text": text, "ids": encoder.encode(text)} for text in TEXTS],
    "conversations": [{"messages": m, "ids": encoder.encode(render(m))} for m in CONVERSATIONS],
  }
  lines = [f'"{key}": [\n' + ",\n".join(json.dumps(row) for row in rows) + "\n]" for key, rows in golden.items()]
  OUTPUT.write_text("{\n" + ",\n".join(lines) + "\n}\n")
  print(f"{OUTPUT}: {sum(len(row['ids']) for rows in golden.values() for row in rows)} token ids")


if __name__ == "__main__":
  if len(sys.argv) != 2:
    sys.exit(__doc__)
  main(sys.argv[1])
