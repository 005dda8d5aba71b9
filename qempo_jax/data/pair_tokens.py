"""Preference pairs as token ids: a prompt as it is sampled from, each response with the token that ends it."""

from collections.abc import Collection
from collections.abc import Sequence
import hashlib
from typing import Any
from typing import NamedTuple

import numpy as np

from qempo_jax import packing
from qempo_jax.data import columns
from qempo_jax.data import special_tokens
from qempo_jax.data import tokenization
from qempo_jax.data.examples import Preference
from qempo_jax.data.examples import Response
from qempo_jax.data.examples import Row
from qempo_jax.data.special_tokens import end_token_id as end_token_id
from qempo_jax.errors import InputError
from qempo_jax.offline_losses import ListWeights
from qempo_jax.types import PackedGroups


class PairTokens(NamedTuple):
  """N examples of G responses each.

  Attributes:
    rows: prompts with their columns.
    prompts: [N] token ids.
    responses: [N][G] token ids: chosen, rejected, and for KTO a response to another prompt.
    dropped: pairs left out because a prompt or a response is too long.
    seams: responses whose tokens would differ if prompt and response were encoded as one text.
    ended: pairs left out because a response holds the token that ends it before its end.
    forbidden: pairs left out because a response holds a token that the policy never samples.
    lists: [N, G] each, what losses of lists read; None for pairs.
  """

  rows: list[Row]
  prompts: list[list[int]]
  responses: list[tuple[tuple[int, ...], ...]]
  dropped: int
  seams: int
  ended: int = 0
  forbidden: int = 0
  lists: ListWeights | None = None

  def weights(self) -> np.ndarray | None:
    """[N] how much each example counts in the loss, by the rows' column; None where all count 1."""
    found = np.array([columns.weight(row) for row in self.rows], np.float32)
    return None if (found == 1).all() else found

  def lengths(self) -> list[int]:
    """Tokens of every example, the prompt once: what rows are sorted by to bound padding."""
    return [len(prompt) + sum(map(len, group)) for prompt, group in zip(self.prompts, self.responses)]

  def fingerprint(self) -> str:
    """A hash of all token ids: tells whether a resumed run has the same pairs."""
    digest = hashlib.sha256()
    for prompt, group in zip(self.prompts, self.responses):
      for ids in (prompt, *group):
        digest.update(np.asarray([len(ids), *ids], np.int64).tobytes())
    for array in (self.weights(), *(self.lists or ())):
      digest.update(b"" if array is None else array.tobytes())
    return digest.hexdigest()


def encode_pairs(
  tokenizer: Any,
  preferences: Sequence[Preference],
  *,
  responses: int,
  max_prompt_length: int,
  max_response_length: int,
  too_long: str = "drop",
  forbidden: Collection[int] = (),
  keep_ending: bool = False,
) -> PairTokens:
  """Encodes pairs; those that the policy could not have written, or that are too long, are dropped and counted.

  Args:
    tokenizer: the model's.
    preferences: the pairs.
    responses: of each example, G: 1 chosen; 2 and rejected; 3 and the chosen response of the next other prompt.
    max_prompt_length: tokens.
    max_response_length: tokens, the ending token included.
    too_long: "drop" leaves out pairs with a response that is too long; "error" stops at the first; "truncate" cuts the
      response. A truncated response keeps no ending token, unless `keep_ending`: a policy would learn to end in the middle. A
      pair whose responses are alike then is dropped.
    keep_ending: keep the ending token of a truncated response, for what judges responses that a sampler cuts.
    forbidden: ids that the policy never samples, `ModelConfig.forbidden`; their log-probability is -inf.

  Returns:
    The examples, in order.

  Raises:
    InputError: no pair is left, or G = 3 and there is only one prompt.
  """
  encoder = Encoder(tokenizer)
  rows, prompts, groups, ended, masked = [], [], [], 0, 0
  for row, *pair in preferences:
    prompt = encoder.prompt(row["prompt"])
    group = tuple(encoder.response(row["prompt"], response) for response in pair[: min(responses, 2)])
    if any(isinstance(given, str) and encoder.ends_early(ids) for given, ids in zip(pair, group)):
      ended += 1
      continue
    if any(token in forbidden for ids in group for token in ids):
      masked += 1
      continue
    group = tuple(fitted(ids, row, max_response_length, too_long, keep_ending) for ids in group)
    alike = too_long == "truncate" and len(set(group)) < len(group)
    if not alike and len(prompt) <= max_prompt_length and None not in group:
      rows.append(row)
      prompts.append(prompt)
      groups.append(group)
  if not rows:
    others = f", but for {ended} that end early and {masked} with special tokens (sampling.allowed_tokens)"
    raise InputError(
      f"no pair is left: every pair is too long{others * bool(ended + masked)}: raise data.max_prompt_length="
      f"{max_prompt_length} or sampling.max_response_length={max_response_length} (tokens, the ending token included)"
    )
  if responses == 3:
    groups = [(*group, groups[other][0]) for group, other in zip(groups, _next_other(rows))]
  dropped = len(preferences) - len(rows) - ended - masked
  return PairTokens(rows, prompts, groups, dropped, encoder.seams, ended, masked)


def fitted(
  ids: tuple[int, ...], row: Row, longest: int, too_long: str, keep_ending: bool = False
) -> tuple[int, ...] | None:
  """A response of at most `longest` tokens: as it is, cut, or None, as `encode_pairs` says; raises InputError for "error"."""
  if len(ids) <= longest or too_long == "drop":
    return ids if len(ids) <= longest else None
  if too_long == "error":
    raise InputError(
      f"a response has {len(ids)} tokens, more than sampling.max_response_length={longest}: raise it, or set"
      f" data.too_long to drop or truncate (prompt {str(row['prompt'])[:60]!r})"
    )
  return (*ids[: longest - 1], ids[-1]) if keep_ending else ids[:longest]


def dealt(lengths: Sequence[int], indices: Sequence[int], per_row: int) -> list[int]:
  """The same examples, so ordered that `per_row` neighbours make rows of like length.

  The longest are dealt one to a row, then the next back from the last row to the first, and so on.

  Args:
    lengths: tokens of every example.
    indices: P of them; `per_row` divides P.
    per_row: examples a row; 1 leaves the order as it is.
  """
  if per_row == 1:
    return list(indices)
  rounds = np.asarray(sorted(indices, key=lambda index: -lengths[index])).reshape(per_row, -1)
  rounds[1::2] = rounds[1::2, ::-1]
  return rounds.T.reshape(-1).tolist()


def pack_pairs(
  pairs: PairTokens, indices: Sequence[int], *, bucket: int, max_length: int, per_row: int = 1
) -> tuple[PackedGroups, np.ndarray]:
  """Packs some examples, `per_row` a row and each prompt once; returns the rows and the mask [P, G, T] of response tokens."""
  groups = [pairs.responses[index] for index in indices]
  lengths = np.array([[len(response) for response in group] for group in groups])
  prompts = [pairs.prompts[index] for index in indices]
  packed = packing.pack_groups(prompts, groups, bucket=bucket, prompts_per_row=per_row)
  return packed, np.arange(max_length) < lengths[:, :, None]


def padding_share(packed: PackedGroups) -> float:
  """The share of a packed batch's places that hold no token."""
  return float(np.mean(np.asarray(packed.segments) < 0))


class Encoder:
  """Encodes prompts once each, and responses as what follows them, with exactly one ending token."""

  def __init__(self, tokenizer):
    self._tokenizer = tokenizer
    self._prompts, self._end, self._stops, self._rendered = {}, None, None, None
    self.seams = 0

  def prompt(self, prompt) -> list[int]:
    """Its tokens by the chat template, rendered once."""
    if prompt not in self._prompts:
      self._prompts[prompt] = tokenization.encode_chat(self._tokenizer, prompt)
    return self._prompts[prompt]

  def response(self, prompt, response: Response) -> tuple[int, ...]:
    """Ids of the response after the prompt's own ids, and the ending token; given ids are taken as they are."""
    if not isinstance(response, str):
      return response
    start = self.prompt(prompt)
    templated = bool(self._tokenizer.chat_template)
    whole = self._tokenizer.encode(self._text(prompt) + response, add_special_tokens=not templated)
    return (*self._behind(start, whole, response), self.end)

  def bodies(self, prompt, texts: Sequence[str]) -> list[list[int]]:
    """Ids of several responses to one prompt, as `response` gives them, without the ending token.

    They are encoded behind `ending(prompt)` alone, so the result is the same for all prompts that end alike.
    """
    ending, templated = self.ending(prompt), bool(self._tokenizer.chat_template)
    start = list(self._tokenizer.encode(ending, add_special_tokens=False)) if templated else self.prompt(prompt)
    wholes = [ending + text for text in texts]
    if getattr(self._tokenizer, "is_fast", False):
      wholes = self._tokenizer(wholes, add_special_tokens=not templated, return_attention_mask=False)["input_ids"]
    else:
      wholes = [self._tokenizer.encode(whole, add_special_tokens=not templated) for whole in wholes]
    return [self._behind(start, whole, text) for whole, text in zip(wholes, texts)]

  def ending(self, prompt) -> str:
    """The text of a prompt from its last added token on, before which no tokenizer merges; all of it without a template."""
    text = self._text(prompt)
    if not self._tokenizer.chat_template:
      return text
    added = map(str, special_tokens.added_tokens(self._tokenizer).values())
    return text[max([0, *map(text.rfind, added)]) :]

  def is_canonical(self, prompt, ids: Sequence[int], text: str) -> bool:
    """Whether the text of a sampled response, itself one of many token sequences, encodes to these very tokens."""
    body = lambda tokens: tuple(tokens[:-1] if len(tokens) and tokens[-1] in self.stops else tokens)
    return body(self.response(prompt, text)) == body([int(token) for token in ids])

  def _behind(self, start: list[int], whole: Sequence[int], response: str) -> list[int]:
    """Ids of a text behind those before it, without its own ending or one that the tokenizer adds."""
    ids = list(whole[len(start) :])
    if list(whole[: len(start)]) != start:
      # The two texts merge at the seam. A sampler starts from the prompt's own ids, and so do we.
      self.seams += 1
      ids = list(self._tokenizer.encode(response, add_special_tokens=False))
    while ids and ids[-1] in self.stops:
      ids.pop()
    return ids

  @property
  def end(self) -> int:
    """The token that ends a response."""
    if self._end is None:
      self._end = end_token_id(self._tokenizer)
    return self._end

  @property
  def stops(self) -> frozenset[int]:
    """The tokens that end a response wherever they stand."""
    if self._stops is None:
      self._stops = frozenset(tokenization.stop_token_ids(self._tokenizer))
    return self._stops

  def ends_early(self, ids: Sequence[int]) -> bool:
    """Whether a sampler would have stopped before the last of these tokens."""
    return any(token in self.stops for token in ids[:-1])

  def _text(self, prompt) -> str:
    if not self._tokenizer.chat_template:
      return prompt
    if self._rendered is not None and self._rendered[0] == prompt:  # a pair asks twice
      return self._rendered[1]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    self._rendered = prompt, text
    return text


def _next_other(rows) -> list[int]:
  """For every row the next one (around the end) that has another prompt."""
  count = len(rows)
  found = [-1] * count
  following = None
  for place in range(2 * count - 1, -1, -1):
    index, after = place % count, (place + 1) % count
    if rows[after]["prompt"] != rows[index]["prompt"]:
      following = after
    if following is not None:
      found[index] = following
  if following is None:
    raise InputError("kto needs pairs of at least two prompts: it compares with responses to another prompt")
  return found
