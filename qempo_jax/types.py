"""Batches as pytrees, with an explicit [prompts, group] axis wherever samples belong to a prompt.

Shape letters: P prompts, G samples of a prompt, L prompt length, T response length, B packed rows of R places,
S places for the response tokens of a row.
"""

from typing import NamedTuple

from flax import struct
import jax


@struct.dataclass
class PromptBatch:
  """Prompts, padded on either side.

  Attributes:
    tokens: [P, L] token ids.
    mask: [P, L], true on the prompts' own tokens (from lengths, never from `tokens != pad`).
  """

  tokens: jax.Array
  mask: jax.Array


@struct.dataclass
class Rollout:
  """Sampled groups of responses.

  Attributes:
    tokens: [P, G, T] token ids, the ending token included.
    mask: [P, G, T], true on response tokens, the ending token included.
    log_probs: [P, G, T] log-probability of each sampled token, in nats, 0 where masked.
    entropies: [P, G, T] entropy of each next-token distribution, in nats, 0 where masked.
    truncated: [P, G], true where the length limit came before an ending token.
    slot_steps: tokens that the sampler's slots could have drawn meanwhile, a scalar; None where nothing was sampled.
  """

  tokens: jax.Array
  mask: jax.Array
  log_probs: jax.Array
  entropies: jax.Array
  truncated: jax.Array
  slot_steps: jax.Array | None = None

  @property
  def utilisation(self) -> jax.Array | None:
    """Share of the slots' steps that drew a token of a sample; None where nothing was sampled."""
    return None if self.slot_steps is None else self.mask.sum() / self.slot_steps


class RowLayout(NamedTuple):
  """Where things are in a packed row; static, so that each layout is compiled once.

  Attributes:
    prompt: L, places of the row's prompts; those of the responses follow.
    chunk: places that attention takes together; divides the responses' places.
    reach: places within which any one response lies.
    prompts: k, prompts a row.
    responses: G, responses a prompt.
  """

  prompt: int
  chunk: int
  reach: int
  prompts: int
  responses: int


@struct.dataclass
class PackedGroups:
  """Rows of k prompts each: the prompts once, padded, then every response of their groups, without padding between.

  Rows are B = P / k, and prompt p is the (p mod k)th of row p // k.

  Attributes:
    tokens: [B, R] token ids; the last token of a response is predicted but never fed.
    positions: [B, R] rotary positions; each response continues its prompt.
    segments: [B, R], j (G + 1) on the row's prompt j, j (G + 1) + i + 1 on its response i, -1 on padding.
    source: [B, S] place in the row whose hidden state predicts this response token.
    target: [B, S] the response token.
    sample: [B, S] which response it belongs to: j G + i, and k G on padding.
    time: [B, S] its place in the response.
    layout: of every row.
  """

  tokens: jax.Array
  positions: jax.Array
  segments: jax.Array
  source: jax.Array
  target: jax.Array
  sample: jax.Array
  time: jax.Array
  layout: RowLayout = struct.field(pytree_node=False)
