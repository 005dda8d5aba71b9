"""Batches as pytrees, with an explicit [prompts, group] axis for samples of a prompt.

Shape letters: P prompts, G samples of a prompt, L prompt length, T response length, B packed rows of R columns,
S columns for the scored response tokens of a row.
"""

from typing import NamedTuple

from flax import struct
import jax


@struct.dataclass
class PromptBatch:
  """Prompts, padded on either side.

  Attributes:
    tokens: [P, L] token ids.
    mask: [P, L], True on prompt tokens (from lengths, never from `tokens != pad`).
  """

  tokens: jax.Array
  mask: jax.Array


@struct.dataclass
class Rollout:
  """Sampled groups of responses.

  Attributes:
    tokens: [P, G, T] token ids, EOS included.
    mask: [P, G, T], True on response tokens, EOS included.
    log_probs: [P, G, T] log-prob of each sampled token, nats, 0 on padding.
    entropies: [P, G, T] entropy of each next-token distribution, nats, 0 on padding.
    truncated: [P, G], True if the response reached the length limit without EOS.
    slot_steps: decode steps times slots: tokens that the sampler could have drawn, a scalar; None for given responses.
  """

  tokens: jax.Array
  mask: jax.Array
  log_probs: jax.Array
  entropies: jax.Array
  truncated: jax.Array
  slot_steps: jax.Array | None = None

  @property
  def utilisation(self) -> jax.Array | None:
    """Share of the slots' steps that drew a response token; None for given responses."""
    return None if self.slot_steps is None else self.mask.sum() / self.slot_steps


class RowLayout(NamedTuple):
  """Layout of a packed row; static, so that each layout compiles once.

  Attributes:
    prompt: L, columns of the row's prompts; those of the responses follow.
    chunk: columns that attention processes together.
    reach: columns that contain any one response.
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
  """Rows of k prompts each: the prompts once, padded, then all responses of their groups, contiguous.

  There are B = P / k rows; prompt p is the (p mod k)th of row p // k.

  Attributes:
    tokens: [B, R] token ids; the last token of a response is predicted but never an input.
    positions: [B, R] rotary positions; each response continues its prompt.
    segments: [B, R], j (G + 1) on the row's prompt j, j (G + 1) + i + 1 on its response i, -1 on padding.
    source: [B, S] column whose hidden state predicts the response token.
    target: [B, S] the response token.
    sample: [B, S] response of the token: j G + i, and k G on padding.
    time: [B, S] index of the token in its response.
    layout: layout of every row.
  """

  tokens: jax.Array
  positions: jax.Array
  segments: jax.Array
  source: jax.Array
  target: jax.Array
  sample: jax.Array
  time: jax.Array
  layout: RowLayout = struct.field(pytree_node=False)
