"""A reward model as a reward function: `(prompts, completions, **columns) -> scores`, jitted, batched, bucketed."""

from collections.abc import Sequence
import dataclasses
import functools
import pathlib
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from qempo_jax import packing
from qempo_jax import sharding
from qempo_jax.data import pair_tokens
from qempo_jax.data import preferences
from qempo_jax.data import special_tokens
from qempo_jax.data import templates
from qempo_jax.data import tokenization
from qempo_jax.errors import InputError
from qempo_jax.models import conversion
from qempo_jax.models import demo_model
from qempo_jax.models import reward_checkpoint
from qempo_jax.models import reward_head
from qempo_jax.models.config import ModelConfig
from qempo_jax.paths import expand_path

# Folder of a reward model's export, in the workdir of its training run.
EXPORT_FOLDER = "model"


class Loaded(NamedTuple):
  """A reward model on its devices.

  Attributes:
    config: the decoder's config.
    params: the sharded tree with "score".
    tokenizer: its tokenizer.
    pad_token_id: padding token, which ends no text; the token before it is scored.
    mesh: the devices.
    has_head: True if the source had a head; else every score is 0.
    foreign: True for a classifier from elsewhere, which scores the last token of the template's rendering of the whole
      conversation; False scores the token that ends the response.
  """

  config: ModelConfig
  params: Any
  tokenizer: Any
  pad_token_id: int
  mesh: jax.sharding.Mesh
  has_head: bool
  foreign: bool = False


def load_model(
  source: str | pathlib.Path, *, mesh: jax.sharding.Mesh | None = None, compute_dtype: str = "float32"
) -> Loaded:
  """Loads a reward model, or a language model with a new head.

  Args:
    source: a folder of a sequence classifier, the workdir of a training run, or any source of a language model
      ("demo", a .gguf file, a folder, a Hugging Face id).
    mesh: the devices; None: all of them, each with its own rows.
    compute_dtype: dtype of the operands of products with weights.

  Returns:
    The model.

  Raises:
    InputError: the source cannot be read.
  """
  path = demo_model.demo_model_path() if source == "demo" else expand_path(source)
  if (path / EXPORT_FOLDER / "config.json").is_file():
    path = path / EXPORT_FOLDER
  has_head, pad, foreign = path.is_dir() and reward_checkpoint.is_checkpoint(path), None, False
  if has_head:
    foreign = not reward_checkpoint.is_own(path)
    config, params, pad = reward_checkpoint.load(path)
  else:
    path = path if path.exists() else source
    config, params = reward_head.from_decoder(*conversion.load(path))
  mesh = sharding.make_mesh() if mesh is None else mesh
  params = jax.device_put(params, sharding.tree_shardings(params, mesh, reward_head.RULES))
  tokenizer = tokenization.load_tokenizer(path)
  num_tokens = special_tokens.num_tokens(tokenizer, config.vocab_size)  # Refuses ids that the embedding lacks.
  config = dataclasses.replace(config, compute_dtype=compute_dtype, num_tokens=num_tokens)
  return Loaded(config, params, tokenizer, padding_id(tokenizer) if pad is None else pad, mesh, has_head, foreign)


def padding_id(tokenizer: Any) -> int:
  """A padding token other than the one that ends responses, before which the score would be read.

  Raises:
    InputError: the tokenizer has no such token.
  """
  end, vocabulary = pair_tokens.end_token_id(tokenizer), tokenizer.get_vocab()
  for candidate in (
    tokenizer.pad_token_id,
    tokenizer.unk_token_id,
    vocabulary.get("<|endoftext|>"),
    tokenizer.bos_token_id,
  ):
    if candidate is not None and candidate != end:
      return int(candidate)
  raise InputError("the tokenizer has no padding token but the one that ends responses; set its pad_token to another")


def load(path: str | pathlib.Path, compute_dtype: str = "float32") -> "RewardModel":
  """The reward function of a trained reward model.

  Args:
    path: its exported folder, or the workdir of its training run.
    compute_dtype: dtype of the operands of products with weights.

  Raises:
    InputError: there is no reward model.
  """
  folder = expand_path(path)
  if not (reward_checkpoint.is_checkpoint(folder) or reward_checkpoint.is_checkpoint(folder / EXPORT_FOLDER)):
    raise InputError(
      f"{folder} holds no reward model; give the folder of a sequence classifier, or the workdir of a finished"
      " experiments.train_reward_model"
    )
  # Of several processes one scores, on its own devices: no other one takes part in its computations.
  mesh = sharding.make_mesh(devices=jax.local_devices())
  return RewardModel(load_model(folder, mesh=mesh, compute_dtype=compute_dtype))


class RewardModel:
  """Scores texts; each call sorts its texts by length, for little padding and few compiled shapes."""

  def __init__(self, model: Loaded, *, batch_size: int = 16, bucket: int = 64):
    """Sets up the jitted scoring function.

    Args:
      model: the reward model.
      batch_size: texts scored at once.
      bucket: rows are padded to a multiple of it, tokens.
    """
    self.__name__ = "reward_model"
    self._model, self._bucket = model, bucket
    data = model.mesh.shape["data"] * model.mesh.shape["fsdp"]
    self._batch_size = packing.round_up(batch_size, data)
    self._rows = rows = sharding.batch_sharding(model.mesh)
    param_shardings = jax.tree.map(lambda leaf: leaf.sharding, model.params)
    self._score = jax.jit(
      functools.partial(_score_rows, config=model.config, pad_token_id=model.pad_token_id),
      in_shardings=(param_shardings, rows, rows),
      out_shardings=sharding.replicated(model.mesh),
    )

  def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """Scores completions, each as the answer to its prompt in the model's chat template.

    Args:
      prompts: texts (one user message), or conversations of messages with role and content.
      completions: texts, or one assistant message each.
      **columns: `chat_template_kwargs`, variables of the template; others are not read.

    Returns:
      One score a completion, reward units; None for one with a token for which the embedding has no row.

    Raises:
      InputError: a prompt or completion has another form.
    """
    if len(prompts) != len(completions):
      raise InputError(f"the reward model got {len(prompts)} prompts for {len(completions)} completions")
    if not completions:
      return []
    encoder = pair_tokens.Encoder(self._model.tokenizer)
    given = columns.get(templates.OPTIONS) or [None] * len(prompts)
    texts, scores = {}, [None] * len(completions)
    for place, (prompt, completion, options) in enumerate(zip(prompts, completions, given, strict=True)):
      turn = _prompt(prompt), _completion(completion), templates.options_of({templates.OPTIONS: options})
      if templates.rowless(self._model.tokenizer, turn[1]):
        continue
      whole = encoder.conversation(*turn) if self._model.foreign else None
      texts[place] = whole or [*encoder.prompt(turn[0], turn[2]), *encoder.response(*turn)]
    for place, score in zip(texts, self.score_ids(list(texts.values())), strict=True):
      scores[place] = score
    return scores

  def score_ids(self, texts: Sequence[Sequence[int]]) -> list[float]:
    """Scores token ids, prompt and response concatenated, none empty."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    scores = np.zeros(len(texts), np.float32)
    for start in range(0, len(order), self._batch_size):
      chosen = order[start : start + self._batch_size]
      width = packing.round_up(len(texts[chosen[-1]]), self._bucket)
      tokens = np.full((self._batch_size, width), self._model.pad_token_id, np.int32)
      lengths = np.ones(self._batch_size, np.int32)
      for row, index in enumerate(chosen):
        lengths[row] = len(texts[index])
        tokens[row, : lengths[row]] = texts[index]
      placed = sharding.place((tokens, lengths), self._rows)  # of several processes, jit places no host arrays itself
      scores[chosen] = np.asarray(self._score(self._model.params, *placed))[: len(chosen)]
    return scores.tolist()


def _score_rows(params, tokens_BxL, lengths_B, *, config, pad_token_id):
  valid = jax.numpy.arange(tokens_BxL.shape[1]) < lengths_B[:, None]
  last = reward_head.last_unlike_padding(tokens_BxL, pad_token_id)
  return reward_head.score_rows(params, config, tokens_BxL, valid, last)[:, 0]


def _prompt(value) -> preferences.Prompt:
  if isinstance(value, str):
    return value
  messages = _messages(value)
  return messages[0]["content"] if [m["role"] for m in messages] == ["user"] else messages


def _completion(value) -> str:
  if isinstance(value, str):
    return value
  messages = _messages(value)
  if len(messages) != 1:
    raise InputError(f"a completion has {len(messages)} messages; the reward model scores one assistant message")
  return messages[0]["content"]


def _messages(value) -> tuple[preferences.Message, ...]:
  try:
    return tuple(preferences.Message(role=m["role"], content=m["content"]) for m in value)
  except (TypeError, KeyError) as error:
    raise InputError(f"{value!r:.80} is neither a text nor messages with role and content") from error
