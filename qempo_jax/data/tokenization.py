"""Tokenizers, and the encoding of prompts in the form that a chat model was trained to continue.

A GGUF file holds its own vocabulary, merges, special tokens and chat template; `gguf_tokenizer` builds a fast
tokenizer from these alone. Everything else goes through transformers. Heavy packages are imported on first use.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import os
import pathlib
from typing import TYPE_CHECKING
from typing import Any

from qempo_jax.data import special_tokens
from qempo_jax.data import templates
from qempo_jax.data.special_tokens import stop_token_ids as stop_token_ids
from qempo_jax.errors import InputError
from qempo_jax.paths import expand_path

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerBase
  from transformers import PreTrainedTokenizerFast

Message = Mapping[str, str]

# Files of which a tokenizer folder holds at least one.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
# Values of `tokenizer.ggml.token_type`.
_CONTROL, _USER_DEFINED = 3, 4


def load_tokenizer(path_or_id: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
  """Loads the tokenizer of a model, with the stop tokens that the model's settings list.

  Args:
    path_or_id: a .gguf file, a local folder with tokenizer files, or a Hugging Face id.

  Returns:
    A transformers tokenizer.

  Raises:
    InputError: no tokenizer exists there, or it cannot be read; names the path and the remedy.
  """
  name = os.fspath(path_or_id)
  path = expand_path(name)
  if path.suffix == ".gguf":
    return gguf_tokenizer(path)
  if path.is_file():
    raise InputError(f"{path} is a file, not a model: name its folder, a .gguf file or a Hugging Face id.")
  if path.is_dir():
    if not any((path / file).is_file() for file in TOKENIZER_FILES):
      raise InputError(
        f"No tokenizer in the folder {path}: copy the model's tokenizer.json and tokenizer_config.json into it."
      )
    tokenizer = _from_transformers(str(path), f"Can't read the tokenizer in the folder {path}", "copy its files again")
    return _with_stops(tokenizer, lambda file: special_tokens.read_settings(path, file))
  if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
    raise InputError(f"No such model folder: {path}; check the path, or give a Hugging Face id such as org/name.")
  tokenizer = _from_transformers(
    name,
    f"{name!r} is neither a local folder nor a Hugging Face model whose tokenizer can be loaded",
    "check the spelling, the network and access rights, or give a local folder",
  )
  return _with_stops(tokenizer, lambda file: _from_hub(name, file))


def gguf_tokenizer(path: str | os.PathLike[str]) -> PreTrainedTokenizerFast:
  """Builds a byte-level BPE tokenizer from the `tokenizer.*` fields of a GGUF file.

  Bytes outside the vocabulary (rare or absent in valid text) are dropped, as by the model's own tokenizer.

  Args:
    path: a GGUF file.

  Returns:
    A fast tokenizer with the file's special tokens, chat template and context length; it pads on the left.

  Raises:
    InputError: the file is absent or damaged, or its kind of tokenizer is not supported.
  """
  fields = _gguf_fields(pathlib.Path(path))
  tokens = fields["tokenizer.ggml.tokens"]
  special = {
    role: tokens[fields[key]]
    for role, key in (
      ("bos_token", "tokenizer.ggml.bos_token_id"),
      ("eos_token", "tokenizer.ggml.eos_token_id"),
      ("unk_token", "tokenizer.ggml.unknown_token_id"),
      ("pad_token", "tokenizer.ggml.padding_token_id"),
    )
    if key in fields
  }
  context = {key: value for key, value in fields.items() if key.endswith(".context_length")}
  tokenizer = _transformers().PreTrainedTokenizerFast(
    tokenizer_object=_byte_level_bpe(fields, special.get("bos_token")),
    clean_up_tokenization_spaces=False,
    padding_side="left",
    **({"model_max_length": next(iter(context.values()))} if context else {}),
    **special,
  )
  tokenizer.chat_template = fields.get("tokenizer.chat_template")
  ends = [fields[key] for key in ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id") if key in fields]
  special_tokens.declare_stop_ids(tokenizer, [{"eos_token_id": ends}])
  return tokenizer


def encode_chat(
  tokenizer: PreTrainedTokenizerBase,
  messages_or_prompt: Sequence[Message] | str,
  options: Mapping[str, Any] | None = None,
) -> list[int]:
  """Encodes a conversation up to and including the header of the assistant's next turn.

  The chat template is applied once; special tokens that it leaves out, such as a BOS, are not added. A model without
  a template gets a plain prompt as the tokenizer encodes it.

  Args:
    tokenizer: the model's tokenizer.
    messages_or_prompt: messages with "role" and "content", or one user message as a string.
    options: variables of the chat template.

  Returns:
    Token ids of the prompt.

  Raises:
    InputError: the tokenizer has no chat template for messages, or the template refuses them.
  """
  is_prompt = isinstance(messages_or_prompt, str)
  if not tokenizer.chat_template:
    if is_prompt:
      return _without_eos(tokenizer, messages_or_prompt)
    raise InputError("The tokenizer has no chat template: give plain prompts, or use an instruction-tuned model.")
  text = templates.render(tokenizer, templates.turns(messages_or_prompt), header=True, options=options)
  return list(tokenizer.encode(text, add_special_tokens=False))


def decode_response(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], stop_tokens: Sequence[int]) -> str:
  """Decodes a response without its final stop token; other special tokens stay visible.

  Args:
    tokenizer: the model's tokenizer.
    ids: token ids of the response, ending with the stop token unless truncated.
    stop_tokens: ids that end a response.

  Returns:
    The text.
  """
  body = ids[:-1] if len(ids) and ids[-1] in stop_tokens else ids
  return tokenizer.decode(body, skip_special_tokens=False)


def _without_eos(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
  """Encodes a plain prompt without the EOS that some tokenizers append, since the model is to continue the text."""
  if token := templates.rowless(tokenizer, text):
    raise InputError(f"a prompt contains {token!r}, for which the model's embedding has no row; remove it")
  ids = list(tokenizer.encode(text))
  if ids and ids[-1] == tokenizer.eos_token_id:
    bare = tokenizer.encode(text, add_special_tokens=False)
    if list(bare[-1:]) != ids[-1:]:
      return ids[:-1]
  return ids


def _transformers() -> Any:
  """Imports transformers without its advice to install PyTorch, which is not needed here."""
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  import transformers

  return transformers


def _from_transformers(name: str, problem: str, remedy: str) -> PreTrainedTokenizerBase:
  try:
    return _transformers().AutoTokenizer.from_pretrained(name)
  except Exception as error:  # The tokenizers package raises bare Exception for a malformed file.
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")
    raise InputError(f"{problem} ({reason}): {remedy}.") from error


def _with_stops(tokenizer: PreTrainedTokenizerBase, read: Callable[[str], dict[str, Any]]) -> PreTrainedTokenizerBase:
  """Returns the tokenizer with the stop tokens of the model's settings; `read` maps a file name to its settings."""
  special_tokens.declare_stop_ids(tokenizer, map(read, special_tokens.SETTINGS_FILES))
  return tokenizer


def _from_hub(name: str, file: str) -> dict[str, Any]:
  """Reads model settings of a Hugging Face id; empty if it has none, or if they are neither cached nor reachable."""
  import huggingface_hub
  from huggingface_hub.errors import EntryNotFoundError

  try:
    path = pathlib.Path(huggingface_hub.hf_hub_download(name, file))
  except EntryNotFoundError:
    return {}
  return special_tokens.read_settings(path.parent, path.name)


def _gguf_fields(path: pathlib.Path) -> dict[str, Any]:
  """Reads the tokenizer fields of a GGUF file, and checks their kind."""
  import gguf

  if not path.is_file():
    raise InputError(f"No such model file: {path}; check the path.")
  try:
    reader = gguf.GGUFReader(path)
    wanted = {k: f for k, f in reader.fields.items() if k.startswith("tokenizer.") or k.endswith(".context_length")}
    fields = {key: field.contents() for key, field in wanted.items()}
  except Exception as error:  # NumPy and the decoder raise many types for a damaged file.
    raise InputError(f"Can't read {path} as a GGUF file ({error}): download it again.") from error
  if missing := {"tokenizer.ggml.tokens", "tokenizer.ggml.merges"} - fields.keys():
    raise InputError(f"No BPE tokenizer in {path} (no {min(missing)}): use a folder with a tokenizer.json instead.")
  kind = (fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre"))
  if kind[0] != "gpt2" or kind[1] not in ("smollm", "gpt-2"):
    raise InputError(
      f"The tokenizer in {path} is of the kind {kind[0]}/{kind[1]}, and only gpt2/smollm and gpt2/gpt-2 are supported "
      "in GGUF files: use a folder with the model's tokenizer.json instead."
    )
  return fields


def _byte_level_bpe(fields: Mapping[str, Any], bos_token: str | None) -> Any:
  """Builds the `tokenizers` pipeline: split, map bytes to characters, merge, decode."""
  from tokenizers import AddedToken
  from tokenizers import Tokenizer
  from tokenizers import decoders
  from tokenizers import models
  from tokenizers import pre_tokenizers
  from tokenizers import processors

  tokens = fields["tokenizer.ggml.tokens"]
  merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
  tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
  splits = [pre_tokenizers.ByteLevel(add_prefix_space=bool(fields.get("tokenizer.ggml.add_space_prefix")))]
  if fields["tokenizer.ggml.pre"] == "smollm":
    splits.insert(0, pre_tokenizers.Digits(individual_digits=True))
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
  tokenizer.decoder = decoders.ByteLevel()
  for kind, is_special in ((_CONTROL, True), (_USER_DEFINED, False)):
    types = fields.get("tokenizer.ggml.token_type", ())
    added = [token for token, token_type in zip(tokens, types, strict=False) if token_type == kind]
    tokenizer.add_tokens([AddedToken(token, special=is_special, normalized=False) for token in added])
  if fields.get("tokenizer.ggml.add_bos_token") and bos_token is not None:
    bos = (bos_token, tokenizer.token_to_id(bos_token))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos[0]} $0", special_tokens=[bos])
  return tokenizer
