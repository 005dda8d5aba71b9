"""The `sampling` group of a config -> settings of sampler and scorer, and which of them can train."""

from typing import Any

from ml_collections import ConfigDict

from experiments.plan import Policy
from experiments.plan import Sampling
from qempo_jax.errors import InputError
from qempo_jax.logit_transform import LogitTransform

_KEPT_SET = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}  # with the values that keep all tokens
_OTHERS = {"min_response_length": 0, "stop_strings": (), "logit_bias": ()}


def sampling(config: ConfigDict, policy: Policy) -> Sampling:
  """Settings of sampling and scoring.

  Args:
    config: a complete config.
    policy: whose tokenizer names the tokens of `sampling.logit_bias`.

  Raises:
    InputError: a token is unknown, or a value does not fit.
  """
  s = config.sampling
  if not all(isinstance(string, str) and string for string in s.stop_strings):
    raise InputError(f"sampling.stop_strings={s.stop_strings!r}: each must be a text of one character or more")
  return Sampling(
    prompts=config.data.prompts_per_step,
    group_size=s.group_size,
    max_prompt_length=config.data.max_prompt_length,
    max_response_length=s.max_response_length,
    temperature=s.temperature or 1.0,
    mesh=tuple(s.mesh),
    slots=s.slots,
    halvings=s.halvings,
    bucket=config.compute.bucket,
    chunk_size=config.compute.chunk_size,
    transform=_transform(config, policy),
    stop_strings=tuple(s.stop_strings),
    function=s.function,
  )


def check_training(config: ConfigDict) -> None:
  """Raises InputError where the config would train a policy whose samples it can't score."""
  s, o = config.sampling, config.offline
  chosen = lambda plain: next((f"sampling.{name}={s[name]}" for name, value in plain.items() if s[name] != value), None)
  kept_set, changed = chosen(_KEPT_SET), chosen(_KEPT_SET | _OTHERS)
  outside = "whose log-probability under the policy is then -inf"
  for wrong, advice in (
    (
      s.temperature == 0,
      "sampling.temperature=0 is greedy, which leaves nothing to learn from: set it above 0, and evaluation.temperature=0"
      " to evaluate greedily",
    ),
    (
      o.loss is None and (s.top_k == 1 or s.min_p == 1),
      f"sampling.{'top_k' if s.top_k == 1 else 'min_p'}=1 keeps the likeliest token alone, as greedy sampling does, which leaves"
      " nothing to learn from: set top_k above 1 (0: no limit) and min_p below 1",
    ),
    (
      o.loss is not None and changed,
      f"{changed} with offline.loss={o.loss}: the pairs may hold responses that the policy never samples, {outside}; make the"
      " pairs by experiments.make_pairs with it, and train without",
    ),
    (
      kept_set and config.replay.size,
      f"{kept_set} with replay.size={config.replay.size}: replayed responses may hold tokens outside the kept set, {outside};"
      " set one of them to its default",
    ),
    (
      kept_set and s.stale_steps,
      f"{kept_set} with sampling.stale_steps={s.stale_steps}: importance weights cannot correct for tokens outside an earlier"
      " policy's kept set; set one of them to its default",
    ),
    (
      s.function and (changed or o.loss is not None),
      f"{changed or f'offline.loss={o.loss}'} with sampling.function={s.function}: the function samples the policy at its"
      " temperature alone, online; set one of them to its default",
    ),
    (
      s.function and config.compute.distributed,
      "sampling.function with compute.distributed: every process would ask for samples of its own; use one process",
    ),
  ):
    if wrong:
      raise InputError(advice)


def in_words(settings: Sampling) -> str:
  """Truncation and stop strings in words, for reports; empty if temperature, stop tokens and length are all there is."""
  parts = [str(settings.transform)] if settings.transform.acts else []
  if settings.stop_strings:
    parts.append("responses end at " + " or ".join(map(repr, settings.stop_strings)))
  if settings.function:
    parts.append(f"training samples come from {settings.function}, importance-weighted")
  if settings.transform.truncates:
    parts.append("log-probs and entropies are of the truncated distribution, KL is from the untruncated reference")
  return "; ".join(parts)


def _transform(config: ConfigDict, policy: Policy) -> LogitTransform:
  s = config.sampling
  least = s.min_response_length
  if least >= s.max_response_length:
    raise InputError(
      f"sampling.min_response_length={least} must be below sampling.max_response_length={s.max_response_length}"
    )
  return LogitTransform(
    top_k=s.top_k,
    top_p=float(s.top_p),
    min_p=float(s.min_p),
    min_length=least,
    stop_tokens=tuple(policy.stop_tokens) if least else (),
    bias=tuple(_bias(entry, policy) for entry in s.logit_bias),
    greedy=s.temperature == 0,
  )


def _bias(entry: Any, policy: Policy) -> tuple[int, float]:
  """(id, nats) of one entry of `sampling.logit_bias`."""
  token, value = entry if isinstance(entry, (tuple, list)) and len(entry) == 2 else (None, None)
  if not isinstance(token, (str, int)) or not (value is None or isinstance(value, (int, float))):
    raise InputError(
      f"sampling.logit_bias holds {entry!r}: write (token's text or id, nats), with None to forbid the token"
    )
  if isinstance(token, str):
    if policy.tokenizer is None:
      raise InputError(f"sampling.logit_bias names {token!r}, and no tokenizer is loaded here; give the token's id")
    ids = [policy.tokenizer.get_vocab()[token]] if token in policy.tokenizer.get_vocab() else []
    ids = ids or list(policy.tokenizer.encode(token, add_special_tokens=False))
    if len(ids) != 1:
      raise InputError(f"sampling.logit_bias: {token!r} is {len(ids)} tokens of this tokenizer; name one, or its id")
    token = ids[0]
  if policy.config is not None and not 0 <= token < policy.config.vocab_size:
    raise InputError(f"sampling.logit_bias: there is no token {token}; ids are below {policy.config.vocab_size}")
  return token, float("-inf") if value is None else float(value)
