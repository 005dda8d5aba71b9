"""Random batches: prompts, and packed rows of a prompt with responses of one length."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.compile.roofline import Batch
from qempo_jax import packing
from qempo_jax.train.offline_step import PairBatch
from qempo_jax.train.online_step import GroupBatch
from qempo_jax.types import PackedGroups
from qempo_jax.types import PromptBatch


def tokens(batch: Batch, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
  """Random prompts [P, L] and responses [P, G, T]."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.integers(1, vocab_size, shape, dtype=np.int32)
  return draw(batch.rows, batch.prompt), draw(batch.rows, batch.group, batch.response)


def prompts(batch: Batch, vocab_size: int) -> PromptBatch:
  """The prompts of `tokens`, unpadded."""
  found = jnp.asarray(tokens(batch, vocab_size)[0])
  return PromptBatch(found, jnp.ones(found.shape, bool))


def packed(batch: Batch, prompts, responses) -> PackedGroups:
  """Packed rows on the device."""
  return jax.tree.map(jnp.asarray, packing.pack_groups(prompts, responses, bucket=batch.bucket))


def pairs(batch: Batch, vocab_size: int) -> PairBatch:
  """Pairs with the reference's log-probs of tokens drawn alike."""
  found = packed(batch, *tokens(batch, vocab_size))
  shape = (batch.rows, batch.group)
  log_probs = jnp.full(shape, -batch.response * float(np.log(vocab_size)), jnp.float32)
  return PairBatch(found, jnp.ones((*shape, batch.response), bool), log_probs)


def groups(batch: Batch, rows: PackedGroups, rewards) -> GroupBatch:
  """On-policy groups with their rewards [P, G]."""
  fresh = jnp.ones((batch.rows, batch.group), bool)
  mask = jnp.ones((*fresh.shape, batch.response), bool)
  return GroupBatch(rows, mask, {"reward": jnp.asarray(rewards, jnp.float32)}, fresh, ~fresh)
