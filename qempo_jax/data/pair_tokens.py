"""Preference pairs as token ids: a prompt as it is sampled from, each response with the token that ends it."""

from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
import hashlib
import re
from typing import Any
from typing import NamedTuple

import numpy as np

from qempo_jax import packing
from qempo_jax.data import columns
from qempo_jax.data import special_tokens
from qempo_jax.data import templates
from qempo_jax.data import tokenization
from qempo_jax.data.examples import Preference
from qempo_jax.data.examples import Response
from qempo_jax.data.examples import Row
from qempo_jax.data.special_tokens import end_token_id as end_token_id
from qempo_jax.errors import InputError
from qempo_jax.offline_losses import ListWeights
from qempo_jax.types import PackedGroups

Options = Mapping[str, Any] | None

# A tag that a generation header opens at its end, and blanks behind it.
_OPENED = re.compile(r"(<\w+>)(\s*)$")


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
    unrendered: responses that the chat template renders otherwise, see `Encoder`.
    lists: [N, G] each, what losses of lists read; None for pairs.
  """

  rows: list[Row]
  prompts: list[list[int]]
  responses: list[tuple[tuple[int, ...], ...]]
  dropped: int
  seams: int
  ended: int = 0
  forbidden: int = 0
  unrendered: int = 0
  lists: ListWeights | None = None

  def weights(self) -> np.ndarray | None:
    """[N] weight of each example in the loss, from the rows' column; None if all are 1."""
    found = np.array([columns.weight(row) for row in self.rows], np.float32)
    return None if (found == 1).all() else found

  def lengths(self) -> list[int]:
    """Tokens of every example, the prompt once: what rows are sorted by to bound padding."""
    return [len(prompt) + sum(map(len, group)) for prompt, group in zip(self.prompts, self.responses)]

  def fingerprint(self) -> str:
    """A hash of all token ids, by which a resumed run recognises its pairs."""
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
    options = templates.options_of(row)
    prompt = encoder.prompt(row["prompt"], options)
    group = tuple(encoder.response(row["prompt"], response, options) for response in pair[: min(responses, 2)])
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
  return PairTokens(rows, prompts, groups, dropped, encoder.seams, ended, masked, encoder.unrendered)


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
  """Encodes prompts, and responses as the chat template makes them: prompt + response = the whole conversation.

  Attributes:
    seams: responses whose first token merges with the prompt's last.
    unrendered: responses of which that cannot be, since the conversation does not begin with its prompt's rendering. A
      template may drop a response's thoughts that its generation header opens. The text follows the header then.
  """

  def __init__(self, tokenizer):
    self._tokenizer = tokenizer
    self._prompts, self._end, self._stops, self._stop_texts, self._rendered = {}, None, None, None, None
    self.seams = self.unrendered = 0

  def prompt(self, prompt, options: Options = None) -> list[int]:
    """Its tokens by the chat template, rendered once; `options` are the row's template variables."""
    key = prompt, repr(options or {})
    if key not in self._prompts:
      self._prompts[key] = tokenization.encode_chat(self._tokenizer, prompt, options)
    return self._prompts[key]

  def response(self, prompt, response: Response, options: Options = None) -> tuple[int, ...]:
    """Ids of the assistant's turn behind the prompt's own ids, and the ending token; given ids are taken as they are."""
    if not isinstance(response, str):
      return response
    if token := templates.rowless(self._tokenizer, response):
      raise InputError(f"a response contains {token!r}, for which the model's embedding has no row; remove it")
    whole = self._turn(prompt, response, options)
    header = self._text(prompt, options)
    if whole is None:
      text = _without_opened(header, response) if self._tokenizer.chat_template else response
      return (*self._continued(prompt, text, options), self.end)
    ids = self._behind(self.prompt(prompt, options), self._encode(whole), whole[len(header) :])
    ends = [place for place, token in enumerate(ids) if token in self.stops]
    if not ends:  # the template has no ending token
      tail = special_tokens.template_tail(self._tokenizer)
      return (*self._continued(prompt, whole[len(header) :].removesuffix(tail), options), self.end)
    inner = sum(token in self.stops for token in self._encode(response)) if self._has_stop(response) else 0
    end = ends[min(inner, len(ends) - 1)]
    return (*self._without_stops(ids[:end]), ids[end])

  def conversation(self, prompt, response: str, options: Options = None) -> list[int]:
    """Ids of the whole conversation as the template renders it, with what it puts behind the ending token."""
    if not self._tokenizer.chat_template:
      return [*self.prompt(prompt), *self.response(prompt, response)]
    try:
      return self._encode(self._render(prompt, response, options))
    except InputError:  # such as an empty sample
      return [*self.prompt(prompt, options), *self.response(prompt, response, options)]

  def bodies(self, prompt, texts: Sequence[str], options: Options = None) -> list[list[int]]:
    """Ids of several continuations of one prompt, without the ending token.

    They are encoded behind `ending(prompt)` alone, so the result is the same for all prompts that end alike.
    """
    ending, templated = self.ending(prompt, options), bool(self._tokenizer.chat_template)
    start = self._encode(ending) if templated else self.prompt(prompt)
    wholes = [ending + text for text in texts]
    if getattr(self._tokenizer, "is_fast", False):
      wholes = self._tokenizer(wholes, add_special_tokens=not templated, return_attention_mask=False)["input_ids"]
    else:
      wholes = [self._tokenizer.encode(whole, add_special_tokens=not templated) for whole in wholes]
    return [self._without_stops(self._behind(start, whole, text)) for whole, text in zip(wholes, texts)]

  def ending(self, prompt, options: Options = None) -> str:
    """The text of a prompt from its last added token on, before which no tokenizer merges; all of it without a template."""
    text = self._text(prompt, options)
    if not self._tokenizer.chat_template:
      return text
    added = map(str, special_tokens.added_tokens(self._tokenizer).values())
    return text[max([0, *map(text.rfind, added)]) :]

  def is_canonical(self, prompt, ids: Sequence[int], text: str, options: Options = None) -> bool:
    """True if the text of a sampled response, one of its many tokenisations, encodes to these very tokens."""
    return self._continued(prompt, text, options) == self._without_stops([int(token) for token in ids])

  def _turn(self, prompt, response: str, options: Options) -> str | None:
    """The conversation's rendering, which begins with the prompt's; None without a template or such a rendering."""
    if not self._tokenizer.chat_template:
      return None
    try:
      whole = self._render(prompt, response, options)
    except InputError:  # such as an empty sample
      whole = ""
    if whole.startswith(self._text(prompt, options)):
      return whole
    self.unrendered += 1
    return None

  def _continued(self, prompt, text: str, options: Options) -> list[int]:
    """Ids of a text behind the prompt."""
    templated = bool(self._tokenizer.chat_template)
    whole = self._tokenizer.encode(self._text(prompt, options) + text, add_special_tokens=not templated)
    return self._without_stops(self._behind(self.prompt(prompt, options), whole, text))

  def _behind(self, start: list[int], whole: Sequence[int], response: str) -> list[int]:
    """Ids of a text behind those before it."""
    if list(whole[: len(start)]) == start:
      return list(whole[len(start) :])
    # The two texts merge at the seam. A sampler starts from the prompt's own ids, and so do we.
    self.seams += 1
    return self._encode(response)

  def _without_stops(self, ids: Sequence[int]) -> list[int]:
    """Ids without the stop tokens at their end."""
    ids = list(ids)
    while ids and ids[-1] in self.stops:
      ids.pop()
    return ids

  def _has_stop(self, text: str) -> bool:
    if self._stop_texts is None:
      self._stop_texts = [self._tokenizer.decode([token]) for token in self.stops]
    return any(stop in text for stop in self._stop_texts)

  def _encode(self, text: str) -> list[int]:
    return list(self._tokenizer.encode(text, add_special_tokens=False))

  def _render(self, prompt, response: str, options: Options) -> str:
    return templates.render(self._tokenizer, templates.turns(prompt, response), header=False, options=options)

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
    """True if a sampler would have stopped before the last token."""
    return any(token in self.stops for token in ids[:-1])

  def _text(self, prompt, options: Options) -> str:
    if not self._tokenizer.chat_template:
      return prompt
    key = prompt, repr(options or {})
    if self._rendered is None or self._rendered[0] != key:  # a pair asks several times
      text = templates.render(self._tokenizer, templates.turns(prompt), header=True, options=options)
      self._rendered = key, text
    return self._rendered[1]


def _without_opened(header: str, response: str) -> str:
  """A response without the tag that its header opens at the end, such as <think>, where it repeats that."""
  opened = _OPENED.search(header)
  if opened is None or not response.lstrip().startswith(opened[1]):
    return response
  rest = response.lstrip().removeprefix(opened[1])
  return rest.lstrip() if opened[2] else rest


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
