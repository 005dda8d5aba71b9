"""Log-probabilities of many given responses to a prompt; a beginning that several share is computed once.

A row is a prompt and a tree of beginnings, each of which attends to the prompt and to its own beginnings. Rows grow a level
of the tree at a time, so that unlikely branches need not be computed. Shape letters: B prompts, L columns of a row, M nodes
whose next tokens are scored, S scored tokens.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import NamedTuple

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from qempo_jax import packing
from qempo_jax.logit_transform import PLAIN
from qempo_jax.logit_transform import LogitTransform
from qempo_jax.models import transformer
from qempo_jax.models.config import ModelConfig
from qempo_jax.token_stats import MAX_LOGITS

MAX_NODES = 256  # of a row, their beginnings among them


class ResponseTree(NamedTuple):
  """Responses by their beginnings; node n is a beginning, and parents precede their children.

  Attributes:
    tokens: [N] last token of each beginning.
    parents: [N] the beginning one token shorter; -1 for beginnings of one token.
    depths: [N] tokens of each beginning.
    inner: [N] True where a longer beginning follows.
    ends: [R] node of each response.
  """

  tokens: np.ndarray
  parents: np.ndarray
  depths: np.ndarray
  inner: np.ndarray
  ends: np.ndarray


@struct.dataclass
class TreeBatch:
  """Rows of a prompt and nodes of its tree.

  Attributes:
    tokens: [B, L] token ids.
    positions: [B, L] rotary positions.
    mask: [B, L, L] True where a column (second axis) attends to a column (third axis).
    nodes: [B, M] columns whose next-token distributions are computed.
    depths: [B, M] response tokens up to each of them.
    source: [B, S] node, of M, that the scored token follows.
    target: [B, S] the scored token.
  """

  tokens: jax.Array
  positions: jax.Array
  mask: jax.Array
  nodes: jax.Array
  depths: jax.Array
  source: jax.Array
  target: jax.Array


def tree_of(responses: Sequence[Sequence[int]]) -> ResponseTree:
  """The tree of distinct, non-empty responses as token ids."""
  places: dict[tuple[int, int], int] = {}
  steps, ends = [], []  # (token, parent, depth)
  for response in responses:
    node = -1
    for depth, token in enumerate(map(int, response), start=1):
      parent, node = node, places.setdefault((node, token), len(steps))
      if node == len(steps):
        steps.append((token, parent, depth))
    ends.append(node)
  tokens, parents, depths = np.array(steps, np.int32).reshape(-1, 3).T
  return ResponseTree(tokens, parents, depths, np.isin(np.arange(len(steps)), parents), np.array(ends, np.int32))


def score_trees(
  params, config: ModelConfig, batch: TreeBatch, *, temperature: float, transform: LogitTransform = PLAIN
) -> jax.Array:
  """log pi(target | source) of every scored token: [B, S] nats; anything finite on padding.

  Args:
    params: the decoder's parameters.
    config: the decoder's shape.
    batch: rows of prompts and trees.
    temperature: that of the sampler.
    transform: that of the sampler; the log-prob of a target outside the kept set is -inf.
  """
  hidden = transformer.forward(params, config, batch.tokens, batch.positions, batch.mask, remat=False)
  hidden = jnp.take_along_axis(hidden, batch.nodes[..., None], axis=1)
  rows, count = batch.nodes.shape
  width = max(1, min(count, MAX_LOGITS // (rows * config.vocab_size)))
  unembedding, row = transformer.unembedding(params), jnp.arange(rows)[:, None]

  def block(log_probs, first):
    # The last block is moved back to end with the nodes; what it computes again is the same.
    first = jnp.minimum(first, count - width)
    some = jax.lax.dynamic_slice_in_dim(hidden, first, width, axis=1)
    depths = jax.lax.dynamic_slice_in_dim(batch.depths, first, width, axis=1)
    logits = transformer.logits(some, unembedding, config).astype(jnp.float32)
    logits = transform(logits, temperature=temperature, length=depths)
    place = batch.source - first
    found = jax.nn.log_softmax(logits)[row, jnp.clip(place, 0, width - 1), batch.target]
    return jnp.where((place >= 0) & (place < width), found, log_probs), None

  empty = jnp.zeros(batch.source.shape, jnp.float32)
  return jax.lax.scan(block, empty, jnp.arange(0, count, width))[0]


def log_probs(
  score: Callable[[TreeBatch], np.ndarray],
  prompts: Sequence[Sequence[int]],
  trees: Sequence[ResponseTree],
  *,
  tolerance: float = 0.0,
  max_nodes: int = MAX_NODES,
) -> list[tuple[np.ndarray, float]]:
  """Log-probability of every response of each prompt, and the probability of branches that were left out.

  Level by level, the least likely beginnings are left out while their probabilities sum to at most `tolerance` a prompt.
  The others make rows, several for a prompt with many of them, and every batch holds B rows of any prompts, the widest first.

  Args:
    score: `score_trees` with its other arguments given, to host arrays.
    prompts: [B] token ids.
    trees: [B] responses.
    tolerance: most probability left out, a prompt; 0 leaves out nothing that has a finite log-probability.
    max_nodes: of a row, their beginnings among them; bounds the memory of attention.

  Returns:
    For each prompt ([R] nats, -inf for responses left out; an upper bound of their summed probability).
  """
  found = [np.append(np.full(len(tree.tokens), -np.inf), 0.0) for tree in trees]  # the last is the root, node -1
  levels, left_out = max(int(tree.depths.max(initial=0)) for tree in trees), np.zeros(len(trees))
  waiting = [np.array([-1]) for _ in trees]  # nodes of a level whose children are to be scored
  for _ in range(levels):
    scored_nodes = [[] for _ in trees]
    rows = [(index, part) for index, nodes in enumerate(waiting) for part in _parts(trees[index], nodes, max_nodes)]
    rows.sort(key=lambda row: -len(row[1]))
    for start in range(0, len(rows), len(trees)):
      some = rows[start : start + len(trees)]
      owners = [index for index, _ in some]
      sources = [part for _, part in some] + [np.array([], np.int32)] * (len(trees) - len(some))
      owners += owners[:1] * (len(trees) - len(some))
      edges = [np.flatnonzero(np.isin(trees[index].parents, part)) for index, part in zip(owners, sources)]
      values = score(_batch([prompts[i] for i in owners], [trees[i] for i in owners], sources, edges))
      for index, edge, value in zip(owners, edges, values):
        found[index][edge] = found[index][trees[index].parents[edge]] + np.asarray(value[: len(edge)], np.float64)
        scored_nodes[index].append(edge)
    for index, tree in enumerate(trees):
      nodes = np.concatenate([np.array([], np.intp), *scored_nodes[index]])
      nodes = nodes[tree.inner[nodes] & np.isfinite(found[index][nodes])]
      nodes = nodes[np.argsort(found[index][nodes])]
      mass = np.cumsum(np.exp(found[index][nodes]))
      dropped = int(np.searchsorted(mass, tolerance / levels, side="right")) if tolerance else 0
      left_out[index] += mass[dropped - 1] if dropped else 0.0
      waiting[index] = np.sort(nodes[dropped:])
    if not any(map(len, waiting)):
      break
  return [(of[tree.ends], float(left)) for of, tree, left in zip(found, trees, left_out)]


def _parts(tree: ResponseTree, nodes: np.ndarray, most: int) -> list[np.ndarray]:
  """Divides nodes, in order, so that each part has at most `most` with its beginnings, or a single node."""
  parts, kept = [[]], set()
  for node in map(int, nodes):
    line = _with_beginnings(tree, np.array([node])).tolist()
    if parts[-1] and len(kept.union(line)) > most:
      parts, kept = [*parts, []], set()
    parts[-1].append(node)
    kept.update(line)
  return [np.array(part, np.int32) for part in parts if part]


def _batch(prompts, trees, sources, edges) -> TreeBatch:
  """Rows of the sources and their beginnings, in few different sizes, so that few programs are compiled."""
  kept = [_with_beginnings(tree, nodes) for tree, nodes in zip(trees, sources)]
  width = packing.round_up(max(map(len, prompts)), 16)
  size = width + _size(max(map(len, kept)))
  tokens, positions = np.zeros((2, len(prompts), size), np.int32)
  mask = np.zeros((len(prompts), size, size), bool)
  nodes, depths = np.zeros((2, len(prompts), _size(max(map(len, sources)))), np.int32)
  source, target = np.zeros((2, len(prompts), _size(max(map(len, edges)))), np.int32)
  for row, (prompt, tree) in enumerate(zip(prompts, trees)):
    length, chosen = len(prompt), kept[row]
    column = np.full(len(tree.tokens) + 1, length - 1)  # of each node; the last is the root, node -1
    column[chosen] = width + np.arange(len(chosen))
    tokens[row, :length], positions[row, :length] = prompt, np.arange(length)
    mask[row, :length, :length] = np.tri(length, dtype=bool)
    tokens[row, column[chosen]] = tree.tokens[chosen]
    positions[row, column[chosen]] = length - 1 + tree.depths[chosen]
    for node in chosen:  # parents come first
      mask[row, column[node]] = mask[row, column[tree.parents[node]]]
      mask[row, column[node], column[node]] = True
    nodes[row, : len(sources[row])] = column[sources[row]]
    depths[row, : len(sources[row])] = np.append(tree.depths, 0)[sources[row]]
    place = np.zeros(len(tree.tokens) + 1, np.int32)
    place[sources[row]] = np.arange(len(sources[row]))
    source[row, : len(edges[row])] = place[tree.parents[edges[row]]]
    target[row, : len(edges[row])] = tree.tokens[edges[row]]
  return TreeBatch(tokens, positions, mask, nodes, depths, source, target)


def _with_beginnings(tree: ResponseTree, nodes: np.ndarray) -> np.ndarray:
  """The nodes with all that come before them but the root, in order."""
  found = nodes[nodes >= 0]
  before = found
  while len(before):
    before = np.unique(tree.parents[before])
    before = before[before >= 0]
    found = np.union1d(found, before)
  return found


def _size(count: int) -> int:
  """The next power of two, at least 16; 0 for none."""
  return count and max(16, 1 << (count - 1).bit_length())
