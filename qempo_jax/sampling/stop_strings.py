"""Stop strings: a response ends with the first token by which its text holds one.

That token is the response's last one, and is scored; what the sampler drew after it is not part of the response. Since the
end depends on the tokens before it alone, the cut response has exactly the policy's probability of ending so.
"""

import bisect
from collections.abc import Callable
from collections.abc import Sequence
import dataclasses

import numpy as np

from qempo_jax.types import Rollout


def ending_ids(decode: Callable[[Sequence[int]], str], vocab_size: int, strings: Sequence[str]) -> tuple[int, ...]:
  """Ids whose own text holds a stop string: the sampler can end there at once, and draws less that is cut.

  Args:
    decode: token ids -> text.
    vocab_size: number of ids.
    strings: the stop strings.
  """
  if not strings:
    return ()
  return tuple(id_ for id_ in range(vocab_size) if before(decode([id_]), strings) is not None)


def before(text: str, strings: Sequence[str]) -> str | None:
  """The text before the first stop string; None if it holds none."""
  places = [place for place in map(text.find, strings) if place >= 0]
  return text[: min(places)] if places else None


def cut(rollout: Rollout, decode: Callable[[Sequence[int]], str], strings: Sequence[str]) -> Rollout:
  """The rollout, each response cut after the token that completes a stop string; such a response is not truncated.

  Args:
    rollout: arrays on the host.
    decode: token ids -> text, without the stop token at their end.
    strings: the stop strings.
  """
  mask, truncated = np.array(rollout.mask), np.array(rollout.truncated)
  for at in np.ndindex(truncated.shape):
    ids = np.asarray(rollout.tokens[at])[mask[at]]
    holds = lambda count, ids=ids: before(decode(ids[:count]), strings) is not None
    if holds(len(ids)):
      mask[at][1 + bisect.bisect_left(range(1, len(ids)), True, key=holds) :] = False
      truncated[at] = False
  kept = {name: np.where(mask, getattr(rollout, name), 0) for name in ("tokens", "log_probs", "entropies")}
  return dataclasses.replace(rollout, mask=mask, truncated=truncated, **kept)
