"""Special tokens: the ids that end a response, the ids that no response may hold, and whether ids fit a model."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import pathlib
import re
from typing import TYPE_CHECKING
from typing import Any

from qempo_jax.data import templates
from qempo_jax.errors import InputError
from qempo_jax.paths import read_json

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerBase

# Tokens by which chat models end a turn; a model's own `eos` often names the end of a document instead.
END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end_of_turn|>", "<|end|>")
# Model settings beside a tokenizer that list ids at which generation stops.
SETTINGS_FILES = ("generation_config.json", "config.json")
# Attribute of a loaded tokenizer that holds the ids from those files.
_DECLARED = "declared_stop_ids"
# Placeholders of multimodal tokenizers for what a text decoder never reads; its embedding may lack their rows.
_NOT_TEXT = re.compile("image|audio|video", re.IGNORECASE)


def declare_stop_ids(tokenizer: PreTrainedTokenizerBase, settings: Iterable[Mapping[str, Any]]) -> None:
  """Keeps the stop tokens of the model's settings with the tokenizer, for `stop_token_ids`.

  Args:
    tokenizer: of the model.
    settings: parsed `generation_config.json` and `config.json`.

  Raises:
    InputError: an `eos_token_id` is neither an id nor a list of ids.
  """
  setattr(tokenizer, _DECLARED, tuple(sorted(_declared(tokenizer, settings))))


def listed_stop_ids(settings: Mapping[str, Any]) -> set[int]:
  """The ids in `eos_token_id` of model settings: one, a list, or none.

  Raises:
    InputError: it is something else.
  """
  listed = settings.get("eos_token_id")
  ids = listed if isinstance(listed, list) else [] if listed is None else [listed]
  if any(not isinstance(id_, int) or isinstance(id_, bool) for id_ in ids):
    raise InputError(f"eos_token_id={listed!r} in the model's settings is no token id, nor a list of them; correct it")
  return {id_ for id_ in ids if id_ >= 0}  # -1 stands for none


def read_settings(folder: pathlib.Path, name: str) -> dict[str, Any]:
  """One of `SETTINGS_FILES`, parsed, with those of a language model within it; empty if there is no such file.

  Raises:
    InputError: it is no JSON object.
  """
  path = folder / name
  settings = read_json(path, "copy the model's files again") if path.is_file() else {}
  inner = settings.get("text_config")
  return {**inner, **settings} if isinstance(inner, Mapping) else settings


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, settings: Iterable[Mapping[str, Any]] = ()) -> tuple[int, ...]:
  """Ids that end a response, ascending: the one definition for sampler, encoder, export and verification.

  The union of the tokenizer's EOS, the known end-of-turn tokens, the ids that the model's settings list, and the token
  that the chat template puts after an assistant's text.

  Args:
    tokenizer: of the model; one of `load_tokenizer` knows the model's settings.
    settings: further parsed settings of the model.
  """
  vocabulary = tokenizer.get_vocab()
  ids = {vocabulary[token] for token in END_OF_TURN if token in vocabulary}
  ids |= {tokenizer.eos_token_id, *getattr(tokenizer, _DECLARED, ()), _template_end(tokenizer)}
  return tuple(sorted((ids | _declared(tokenizer, settings)) - {None}))


def end_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
  """The token that ends a training response: the chat template's after an assistant's text, else the EOS.

  Raises:
    InputError: the tokenizer has neither.
  """
  ending = _template_end(tokenizer)
  ending = tokenizer.eos_token_id if ending is None else ending
  if ending is None:
    raise InputError("the tokenizer has no token that ends a response; set its eos_token")
  return ending


def forbidden_token_ids(
  tokenizer: PreTrainedTokenizerBase, *, allowed: Sequence[str] = (), vocab_size: int | None = None
) -> tuple[int, ...]:
  """Special tokens that no response may hold, ascending: all but the stop tokens and the named ones.

  Readers of the text never see them, while entropy, KL and length would count them.

  Args:
    tokenizer: of the model.
    allowed: special tokens, by text, that responses may hold.
    vocab_size: rows of the model's embedding, beyond which special tokens are not listed; None lists all.

  Raises:
    InputError: a name is no special token of the tokenizer.
  """
  special = {id_ for id_, token in added_tokens(tokenizer).items() if token.special}
  special |= set(getattr(tokenizer, "all_special_ids", ()))
  named = {name: tokenizer.get_vocab().get(name) for name in allowed}
  if unknown := [name for name, id_ in named.items() if id_ not in special]:
    raise InputError(
      f"sampling.allowed_tokens names {unknown[0]!r}, which is no special token of this tokenizer; others need no leave"
    )
  kept = special - set(stop_token_ids(tokenizer)) - set(named.values())
  return tuple(sorted(id_ for id_ in kept if vocab_size is None or id_ < vocab_size))


def num_tokens(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> int | None:
  """Tokens of the tokenizer if the model's vocabulary is padded beyond them, else None.

  Texts with placeholders that have no row are refused from then on, see `templates.rowless`.

  Args:
    tokenizer: of the model.
    vocab_size: rows of the model's embedding.

  Raises:
    InputError: a token has no row in the embedding; placeholders for images, audio and video need none.
  """
  if not hasattr(tokenizer, "get_vocab"):
    return None
  vocabulary = tokenizer.get_vocab()
  rowless = [token for token, id_ in vocabulary.items() if id_ >= vocab_size]
  setattr(tokenizer, templates.ROWLESS, tuple(rowless))
  beyond = {token: vocabulary[token] for token in rowless if not _NOT_TEXT.search(token)}
  if beyond:
    first = min(beyond, key=beyond.get)
    raise InputError(
      f"the tokenizer has {max(vocabulary.values()) + 1} tokens and the model's embedding {vocab_size} rows, so {first!r}"
      f" (id {beyond[first]}) has none: resize the model's embedding, or use the model's own tokenizer"
    )
  count = max(vocabulary.values()) + 1
  return count if count < vocab_size else None


def _declared(tokenizer: PreTrainedTokenizerBase, settings: Iterable[Mapping[str, Any]]) -> set[int]:
  """Stop tokens in settings.

  Ids that a model class fills in by default (config.json, and generation settings derived from it) count only if they
  are added tokens: by default they may stand for ordinary text of this tokenizer.
  """
  added, found = added_tokens(tokenizer), set()
  for values in settings:
    by_default = "model_type" in values or values.get("_from_model_config")
    found |= {id_ for id_ in listed_stop_ids(values) if id_ in added or not by_default}
  return found


def template_tail(tokenizer: PreTrainedTokenizerBase) -> str:
  """The text that the chat template puts behind an assistant's last text; empty without a template, or if it refuses."""
  if not getattr(tokenizer, "chat_template", None):
    return ""
  try:
    text = templates.render(tokenizer, templates.turns("question", _ANSWER), header=False)
  except InputError:  # a template that wants other roles, or another shape of messages
    return ""
  return text.rpartition(_ANSWER)[2] if _ANSWER in text else ""


def _template_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
  """The added token that directly follows an assistant's text in the chat template; None if there is none."""
  added, tail = added_tokens(tokenizer), template_tail(tokenizer)
  for id_ in tokenizer.encode(tail, add_special_tokens=False) if tail else ():
    if id_ in added and added[id_].content.strip():
      return id_
    if tokenizer.decode([id_]).strip():
      return None
  return None


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> Mapping[int, Any]:
  """id -> AddedToken of the tokens that are kept whole, special or not."""
  return getattr(tokenizer, "added_tokens_decoder", {})


_ANSWER = "answer"
