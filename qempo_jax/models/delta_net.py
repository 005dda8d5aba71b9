"""Gated delta nets in decoder blocks: projections, a short convolution, the rule of `delta_rule`, and a gated norm.

    q, k, v = silu(convolution(x W));   b = sigmoid(x B);   log a = -e^A softplus(x G + s)
    y = (norm(rule(q, k, v, a, b)) * silu(x Z)) O

The rule's state goes through a sequence token by token, so rows are taken apart into sequences: each prompt once, and
each response from the state after its prompt. Source: Yang et al., "Gated Delta Networks", arXiv 2412.06464, as in
Qwen3.5.

Shape letters as in `layers`; J key heads and H value heads of the rule, K and V their widths, C channels and W taps of
the convolution, U = W - 1 earlier inputs.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from qempo_jax import sharding
from qempo_jax.errors import InputError
from qempo_jax.masking import at_least_float32
from qempo_jax.models import delta_rule
from qempo_jax.models import layers
from qempo_jax.models.config import DeltaNet
from qempo_jax.models.config import ModelConfig


class Inputs(NamedTuple):
  """What the rule needs of tokens, [...] being [B, L] or rows and slots.

  Attributes:
    mixed: [..., C] inputs of the convolution: queries, keys and values.
    log_decay: [..., H] log a.
    rate: [..., H] b.
    kernel: [C, W] the convolution's taps, the last one for the token itself.
    sizes: heads and widths.
  """

  mixed: jax.Array
  log_decay: jax.Array
  rate: jax.Array
  kernel: jax.Array
  sizes: DeltaNet


def param_shapes(sizes: DeltaNet, d: int) -> dict[str, tuple[int, ...]]:
  """Shapes of a block's leaves, for a stream of width D."""
  j, h, k, v, taps = sizes
  shapes = {"delta_query": (d, j, k), "delta_key": (d, j, k), "delta_value": (d, h, v), "delta_gate": (d, h, v)}
  shapes |= {"delta_rate": (d, h), "delta_decay": (d, h), "delta_convolution": (2 * j * k + h * v, taps)}
  return shapes | {"delta_log_rate": (h,), "delta_step": (h,), "delta_norm": (v,), "delta_output": (h, v, d)}


def block(layer, h_BxLxD, config: ModelConfig, recur: Callable, project: Callable):
  """A block's delta net.

  Args:
    layer: the block's parameters.
    h_BxLxD: the normed residual stream.
    config: the decoder's config.
    recur: `Inputs` -> ([B, L, H, V], carried).
    project: (name, x) -> x times the named matrix, [B, L, outputs].

  Returns:
    ([B, L, D], carried).
  """
  sizes = config.delta_net
  decay = jax.nn.softplus(project("delta_decay", h_BxLxD) + layer["delta_step"])
  inputs = Inputs(
    jnp.concatenate([project(f"delta_{name}", h_BxLxD) for name in ("query", "key", "value")], axis=-1),
    -jnp.exp(at_least_float32(layer["delta_log_rate"])) * decay,
    jax.nn.sigmoid(project("delta_rate", h_BxLxD)),
    # Rounded, since samplers keep rounded copies of all stacked matrices.
    at_least_float32(layer["delta_convolution"].astype(config.compute_dtype)),
    sizes,
  )
  with jax.named_scope("delta_rule"):
    out_BxLxHxV, carried = recur(inputs)
  gate = project("delta_gate", h_BxLxD).reshape(out_BxLxHxV.shape)
  gated = layers.rms_norm(out_BxLxHxV, layer["delta_norm"], config.norm_epsilon) * jax.nn.silu(gate)
  return project("delta_output", gated.reshape(*gated.shape[:-2], -1)), carried


def over_rows(valid_BxL) -> Callable:
  """`recur` for rows that are single sequences, padded on either side; carries the inputs and state to go on from.

  Args:
    valid_BxL: True on tokens.
  """

  def recur(inputs: Inputs):
    return _sequences(inputs, valid_BxL, *_beginning(inputs, len(valid_BxL)))

  return recur


def over_mask(mask_BxLxL, positions_BxL, config: ModelConfig) -> Callable | None:
  """`recur` under any mask by which a token attends to its ancestors, such as that of a tree; None without delta nets.

  Every token's state is kept, so this is for few tokens; a token goes on from the state of the last token before it
  that it attends to, which has an earlier column.

  Args:
    mask_BxLxL: True if a query (second axis) attends to a key (third axis).
    positions_BxL: rotary positions.
    config: the decoder's config.
  """
  if config.delta_net is None:
    return None
  rows, length = positions_BxL.shape
  earlier = mask_BxLxL & ~jnp.eye(length, dtype=bool)
  last = jnp.argmax(jnp.where(earlier, positions_BxL[:, None], -1), axis=-1)
  parent_BxL = jnp.where(jnp.any(earlier, axis=-1), last, length)  # `length` stands for none.

  def recur(inputs: Inputs):
    behind = lambda x: jnp.pad(x, ((0, 0), (0, 1), *((0, 0),) * (x.ndim - 2)))
    of = jax.vmap(lambda x, index: x[index])
    chain = [jnp.broadcast_to(jnp.arange(length), parent_BxL.shape)]
    for _ in range(inputs.sizes.kernel - 1):
      chain.append(of(jnp.pad(parent_BxL, ((0, 0), (0, 1)), constant_values=length), chain[-1]))
    seen = jnp.stack([of(behind(at_least_float32(inputs.mixed)), index) for index in chain[::-1]], axis=-1)
    q, k, v = _split(jax.nn.silu(jnp.sum(seen * inputs.kernel, axis=-1)), inputs.sizes)

    def token(states, t):
      of_token = [x[:, t] for x in (q, k, v, inputs.log_decay, inputs.rate)]
      out, state = delta_rule.step(*of_token, of(states, parent_BxL[:, t]))
      return states.at[:, t].set(state), out

    states = jnp.zeros((rows, length + 1, *_beginning(inputs, 1)[1].shape[1:]))
    _, out = jax.lax.scan(token, states, jnp.arange(length))
    return jnp.moveaxis(out, 0, 1), None

  return recur


def over_groups(positions_PxR, segments_PxR, layout, config: ModelConfig) -> Callable | None:
  """`recur` for packed rows, in which every response goes on from its prompt; None for a decoder without delta nets.

  Args:
    positions_PxR: rotary positions, from 0 in each prompt.
    segments_PxR: as in `PackedGroups`, in any order.
    layout: their `RowLayout`.
    config: the decoder's config.

  Raises:
    InputError: tokens are sharded over devices.
  """
  if config.delta_net is None:
    return None
  if sharding.sequence_shards() > 1:
    raise InputError("gated delta nets read a row in order; give the mesh's sequence axis one device")
  columns = segments_PxR.shape[1]
  prompt_PxR, member_PxR = segments_PxR // (layout.responses + 1), segments_PxR % (layout.responses + 1) - 1
  token_PxR = segments_PxR >= 0

  def columns_of(count, length, sequence, place, here):
    """[P, count, length] column of every token of each sequence, `columns` where there is none."""
    rows = jnp.arange(len(here))[:, None]
    empty = jnp.full((len(here), count, length), columns)
    sequence = jnp.where(here & token_PxR, sequence, count)  # Out of range elsewhere, and dropped.
    return empty.at[rows, sequence, place].set(jnp.arange(columns), mode="drop")

  is_prompt_PxR = member_PxR < 0
  prompts = columns_of(layout.prompts, layout.prompt, prompt_PxR, positions_PxR, is_prompt_PxR)
  lengths_Pxk = jnp.sum(prompts < columns, axis=-1)
  place_PxR = positions_PxR - jnp.take_along_axis(lengths_Pxk, jnp.maximum(prompt_PxR, 0), axis=1)
  place_PxR = jnp.where(is_prompt_PxR, positions_PxR, place_PxR)
  response_PxR = prompt_PxR * layout.responses + member_PxR
  own = columns_of(layout.prompts * layout.responses, layout.reach, response_PxR, place_PxR, ~is_prompt_PxR)

  def recur(inputs: Inputs):
    def apart(x, where):
      index = where.reshape(len(where), -1, 1)
      taken = jnp.take_along_axis(x, index, axis=1, mode="fill", fill_value=0)
      return taken.reshape(-1, where.shape[2], x.shape[-1])

    def run(where, *start):
      some = inputs._replace(
        mixed=apart(inputs.mixed, where), log_decay=apart(inputs.log_decay, where), rate=apart(inputs.rate, where)
      )
      out, carried = _sequences(some, (where < columns).reshape(-1, where.shape[2]), *start)
      return out.reshape(*where.shape, *out.shape[2:]), carried

    of_prompts, after = run(prompts, *_beginning(inputs, prompts.shape[0] * prompts.shape[1]))
    of_responses, _ = run(own, *(jnp.repeat(x, layout.responses, axis=0) for x in after))
    rows = jnp.arange(len(prompts))[:, None]
    of_prompt = of_prompts[rows, prompt_PxR, jnp.minimum(place_PxR, layout.prompt - 1)]
    of_response = of_responses[rows, response_PxR, place_PxR]
    return jnp.where(is_prompt_PxR[..., None, None], of_prompt, of_response), None

  return recur


def next_token(inputs: Inputs, before_RxGxUxC, state_RxGxHxKxV):
  """One more token of every slot: ([R, G, H, V], its inputs to go on from, its state)."""
  seen_RxGxWxC = jnp.concatenate([before_RxGxUxC, inputs.mixed[..., None, :]], axis=-2)
  convolved = jnp.sum(seen_RxGxWxC * inputs.kernel.T, axis=-2)
  q, k, v = _split(jax.nn.silu(convolved), inputs.sizes)
  out, state = delta_rule.step(q, k, v, inputs.log_decay, inputs.rate, state_RxGxHxKxV)
  return out, seen_RxGxWxC[..., 1:, :], state


def _sequences(inputs: Inputs, valid_BxL, before_BxUxC, state_BxHxKxV):
  """The rule over sequences from given beginnings: ([B, L, H, V], (inputs [B, U, C] and state to go on from))."""
  mixed_BxLxC = jnp.where(valid_BxL[..., None], at_least_float32(inputs.mixed), 0)
  # Padding in front shifts what stands before a sequence right to its first token.
  first_B = jnp.argmax(valid_BxL, axis=1)
  earlier = before_BxUxC.shape[1]
  seen_BxMxC = jnp.concatenate([jnp.zeros_like(before_BxUxC), mixed_BxLxC], axis=1)
  place_BxU = first_B[:, None] + jnp.arange(earlier)
  seen_BxMxC = seen_BxMxC.at[jnp.arange(len(first_B))[:, None], place_BxU].set(before_BxUxC)
  convolved = delta_rule.convolution(seen_BxMxC[:, earlier:], inputs.kernel, seen_BxMxC[:, :earlier])
  q, k, v = _split(jax.nn.silu(convolved), inputs.sizes)
  out, state = delta_rule.scan(q, k, v, inputs.log_decay, inputs.rate, state_BxHxKxV, valid_BxL)
  count_B = jnp.sum(valid_BxL, axis=1)
  last = jnp.take_along_axis(seen_BxMxC, (place_BxU + count_B[:, None])[..., None], axis=1)
  return out, (last, state)


def _beginning(inputs: Inputs, count: int):
  """Inputs and state before the first token of `count` sequences."""
  j, h, k, v, taps = inputs.sizes
  return jnp.zeros((count, taps - 1, 2 * j * k + h * v)), jnp.zeros((count, h, k, v))


def _split(mixed, sizes: DeltaNet):
  """Queries, keys [..., J, K] and values [..., H, V] of [..., C]."""
  j, h, k, v, _ = sizes
  q, key, value = jnp.split(mixed, (j * k, 2 * j * k), axis=-1)
  by_head = lambda x, heads, width: x.reshape(*x.shape[:-1], heads, width)
  return by_head(q, j, k), by_head(key, j, k), by_head(value, h, v)
