"""Every offline loss by name, in one signature: (example, weights, settings) -> scalar; `jax.vmap` outside.

A loss reads its hyper-parameters from the family's two weights, so that multipliers can change them:

    spl, qempo_kl, h_dpo          alpha, beta                 alpha = (1 + mu) / lambda, beta = mu / lambda
    dpo, ipo (tau), kto           beta, both weights          beta = mu / lambda; mu = 1 is RLHF with a floor
    qempo, cpo, simpo             alpha, no reference         alpha = 1 / lambda
    nll, regression               none                        multipliers have no effect
    listwise                      alpha, beta                 of its pair terms

listwise and regression read all scored responses of a prompt at once, the others a pair or a single response.

SPL and QEMPO-KL are one loss with different sources of the weights. Formulas and references: `qempo_jax.losses`.
"""

from collections.abc import Callable
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from qempo_jax import coherent
from qempo_jax import family
from qempo_jax import losses
from qempo_jax.family import Weights
from qempo_jax.masking import masked

# Least quality multiplier in weights: at 0 the entropy weight would be infinite.
MIN_QUALITY = 1e-3
# Least KL multiplier of a loss with beta alone: at 0 dpo and kto have no gradient, and ipo is infinite.
MIN_KL = 1e-3


class ListWeights(NamedTuple):
  """Weights of a prompt's scored responses in losses of lists; 0 on padding.

  Attributes:
    chosen: [G] share of each acceptable response in the likelihood; 0 on the others.
    rejected: [G] share of each unacceptable response among these; 0 on the others.
    sizes: [G] |A| on acceptable responses: the inverse of the response's share of the acceptable mass under the target;
      q(not A) on the others: the log's unacceptable share.
  """

  chosen: jax.Array
  rejected: jax.Array
  sizes: jax.Array


class Example(NamedTuple):
  """One prompt's responses: the chosen one, the rejected one, and for KTO one that answers another prompt.

  For losses of lists they are G scored responses in any order, and empty ones are padding.

  Attributes:
    token_log_probs: [G, T] under the policy, nats.
    mask: [G, T] True on response tokens, EOS included.
    ref_log_probs: [G] sequence log-probs under the reference, nats.
    reference_kl: [] batch estimate of KL(pi || q) from mismatched responses, nats; read by KTO alone.
    lists: input of losses of lists; None for pairs.
  """

  token_log_probs: jax.Array
  mask: jax.Array
  ref_log_probs: jax.Array
  reference_kl: jax.Array
  lists: ListWeights | None = None

  @property
  def sides(self) -> tuple[jax.Array, jax.Array]:
    """[G] weights of the chosen and of the rejected responses: of one each in a pair."""
    if self.lists is not None:
      return self.lists.chosen, self.lists.rejected
    chosen = jnp.arange(self.mask.shape[0])
    return jnp.asarray(chosen == 0, jnp.float32), jnp.asarray(chosen == 1, jnp.float32)

  @property
  def log_probs(self) -> jax.Array:
    """[G] sequence log-probs, nats."""
    return jnp.sum(masked(self.token_log_probs, self.mask), axis=-1)

  @property
  def lengths(self) -> jax.Array:
    """[G] tokens of each response."""
    return jnp.sum(self.mask, axis=-1)

  def flipped(self) -> "Example":
    """The same pair with exchanged labels."""
    flip = lambda array: array[jnp.array([1, 0])]
    return self._replace(
      token_log_probs=flip(self.token_log_probs), mask=flip(self.mask), ref_log_probs=flip(self.ref_log_probs)
    )


@dataclasses.dataclass(frozen=True)
class LossSettings:
  """Hyper-parameters that are not weights of the family.

  Attributes:
    label_smoothing: assumed share e of flipped labels, in [0, 1/2): (1 - e) L(w, l) + e L(l, w). It bounds the margin,
      so that changed weights can move the policy back. At 0, pairs with consistent labels only ever increase their
      margins.
    margin: SimPO's target margin, reward units.
    desirable_weight: KTO's weight of chosen responses.
    undesirable_weight: KTO's weight of rejected responses.
    nll_weight: weight of -log pi(chosen) in any pair loss, per nat of the whole response.
    pair_weight: weight of listwise's pair terms, relative to the likelihood's 1, reward units.
    min_reward: R of regression, the target's probability of an acceptable response.
  """

  label_smoothing: float
  margin: float
  desirable_weight: float
  undesirable_weight: float
  nll_weight: float
  pair_weight: float = 0.0
  min_reward: float = 0.0


class OfflineLoss(NamedTuple):
  """A loss and its requirements.

  Attributes:
    loss: (example, weights, settings) -> scalar.
    weights: (alpha, beta) -> the weights of the loss's implicit reward.
    needs_reference: True if the loss reads the reference's log-probs.
    responses: number G of responses in an example; losses of lists take any.
    lists: True if an example is a prompt's scored responses, with `ListWeights`.
    weighted: True if the loss has weights of the family, which multipliers can move.
    normalised: True if the implicit reward divides log-probs by lengths.
    smooths: True if label smoothing is part of the loss; False if undefined for it.
    per_token: True divides the batch's sum by tokens, False by examples.
  """

  loss: Callable[[Example, Weights, LossSettings], jax.Array]
  weights: Callable[[Weights], Weights]
  needs_reference: bool = True
  responses: int = 2
  lists: bool = False
  weighted: bool = True
  normalised: bool = False
  smooths: bool = False
  per_token: bool = False


def example_loss(name: str, example: Example, weights: Weights, settings: LossSettings) -> jax.Array:
  """The named loss of one example, with label smoothing and the likelihood term.

      L = (1 - e) L(w, l) + e L(l, w) - nll_weight log pi_w

  Args:
    name: a key of `LOSSES`.
    example: one prompt's responses.
    weights: from `effective_weights`.
    settings: other hyper-parameters.

  Returns:
    Scalar loss.
  """
  entry = LOSSES[name]
  loss = entry.loss(example, weights, settings)
  if settings.label_smoothing and not entry.smooths:
    flipped = entry.loss(example.flipped(), weights, settings)
    loss = (1 - settings.label_smoothing) * loss + settings.label_smoothing * flipped
  if settings.nll_weight and not entry.lists:
    loss += losses.nll_anchor(example.log_probs[0], weight=settings.nll_weight)
  return loss


def implicit_margin(name: str, example: Example, weights: Weights) -> jax.Array:
  """Implicit reward of the chosen response minus that of the rejected one, [] reward units; of lists the mean one.

      m = alpha (log pi_w - log pi_l) - beta (log q_w - log q_l)          per token for length-normalised losses

  Args:
    name: a key of `LOSSES`.
    example: one pair, or the scored responses of a prompt.
    weights: from `effective_weights`.
  """
  lengths = jnp.maximum(example.lengths, 1) if LOSSES[name].normalised else 1
  pi, q = example.log_probs / lengths, example.ref_log_probs / lengths
  means = [side_mean(x, side) for x in (pi, q) for side in example.sides]
  return losses.preference_margin(*means, alpha=weights.alpha, beta=weights.beta)


def side_mean(values: jax.Array, side: jax.Array) -> jax.Array:
  """Mean of [G] values by the [G] weights of one of `Example.sides`, []; 0 where that side is empty."""
  return jnp.sum(side * values) / jnp.maximum(jnp.sum(side), jnp.finfo(jnp.float32).tiny)


def effective_weights(name: str, weights: Weights) -> Weights:
  """Weights that the named loss uses, from fixed (alpha, beta)."""
  return LOSSES[name].weights(weights)


def weights_from_multipliers(name: str, quality: jax.Array, kl: jax.Array) -> Weights:
  """Weights that the named loss uses, from the multipliers lambda and mu.

  A loss without a reference has no KL term: its mu is 0. lambda is at least `MIN_QUALITY`; mu is at least `MIN_KL` if
  the loss uses beta alone.
  """
  quality = jnp.maximum(quality, MIN_QUALITY)
  if not LOSSES[name].needs_reference:
    kl = jnp.zeros_like(kl)
  elif acts_with_beta_alone(name):
    kl = jnp.maximum(kl, MIN_KL)
  return effective_weights(name, family.weights_from_multipliers(quality, kl))


def acts_with_beta_alone(name: str) -> bool:
  """True if the named loss uses beta for both weights."""
  return LOSSES[name].weights is _REFERENCE


_BOTH = lambda weights: weights
_REFERENCE = lambda weights: Weights(weights.beta, weights.beta)
_ENTROPY = lambda weights: Weights(weights.alpha, jnp.zeros_like(weights.beta))


def _sums(e: Example) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  return (*e.log_probs[:2], *e.ref_log_probs[:2])


def _spl(e: Example, w: Weights, s: LossSettings) -> jax.Array:
  return losses.preference_loss(*_sums(e), alpha=w.alpha, beta=w.beta)


def _dpo(e: Example, w: Weights, s: LossSettings) -> jax.Array:
  return losses.dpo_loss(*_sums(e), beta=w.beta)


def _smoothed_dpo(e: Example, w: Weights, s: LossSettings) -> jax.Array:
  return losses.smoothed_dpo_loss(*_sums(e), beta=w.beta, label_smoothing=s.label_smoothing)


def _robust_dpo(e: Example, w: Weights, s: LossSettings) -> jax.Array:
  return losses.robust_dpo_loss(*_sums(e), beta=w.beta, label_smoothing=s.label_smoothing)


def _h_dpo(e: Example, w: Weights, s: LossSettings) -> jax.Array:
  return losses.preference_loss(
    *_sums(e), alpha=w.alpha, beta=w.beta
  )  # alpha = entropy_ratio * beta; unlike the ratio, alpha is defined at beta = 0.


def _ipo(e: Example, w: Weights, s: LossSettings) -> jax.Array:
  return losses.ipo_loss(*_sums(e), tau=w.beta)


def _qempo(e: Example, w: Weights, s: LossSettings) -> jax.Array:
  return losses.qempo_loss(*e.log_probs[:2], alpha=w.alpha)


def _cpo(e: Example, w: Weights, s: LossSettings) -> jax.Array:
  return losses.cpo_loss(*e.log_probs[:2], beta=w.alpha, nll_weight=0.0)  # `example_loss` adds the NLL term.


def _simpo(e: Example, w: Weights, s: LossSettings) -> jax.Array:
  return losses.simpo_loss(*e.log_probs[:2], *e.lengths[:2], beta=w.alpha, margin=s.margin)


def _normalised_spl(e: Example, w: Weights, s: LossSettings) -> jax.Array:
  return losses.length_normalised_preference_loss(*_sums(e), *e.lengths[:2], alpha=w.alpha, beta=w.beta)


def _normalised_ipo(e: Example, w: Weights, s: LossSettings) -> jax.Array:
  return losses.length_normalised_ipo_loss(*_sums(e), *e.lengths[:2], tau=w.beta)


def _kto(e: Example, w: Weights, s: LossSettings) -> jax.Array:
  """Mean of the chosen response's loss and the rejected one's."""
  one = lambda index, desirable: losses.kto_loss(
    e.log_probs[index],
    e.ref_log_probs[index],
    jnp.asarray(desirable),
    e.reference_kl,
    beta=w.beta,
    desirable_weight=s.desirable_weight,
    undesirable_weight=s.undesirable_weight,
  )
  return (one(0, True) + one(1, False)) / 2


def _nll(e: Example, w: Weights, s: LossSettings) -> jax.Array:
  return losses.nll_loss(e.token_log_probs[0], e.mask[0])


def _listwise(e: Example, w: Weights, s: LossSettings) -> jax.Array:
  hyper = {"pair_weight": s.pair_weight, "alpha": w.alpha, "beta": w.beta}
  return losses.listwise_loss(e.log_probs, e.ref_log_probs, *e.sides, e.lengths > 0, **hyper)


def _regression(e: Example, w: Weights, s: LossSettings) -> jax.Array:
  def target(acceptable, ref_log_prob, size):
    numbers = {"num_acceptable": size, "ref_unacceptable": size}
    return coherent.coherent_target_log_probs(acceptable, ref_log_prob, acceptable_share=s.min_reward, **numbers)

  kept = e.lengths > 0
  targets = jax.vmap(target)(e.sides[0] > 0, e.ref_log_probs, jnp.where(kept, e.lists.sizes, 1.0))
  return losses.target_regression_loss(e.log_probs, targets, kept)


LOSSES: dict[str, OfflineLoss] = {
  "spl": OfflineLoss(_spl, _BOTH),
  "qempo_kl": OfflineLoss(_spl, _BOTH),
  "qempo": OfflineLoss(_qempo, _ENTROPY, needs_reference=False),
  "dpo": OfflineLoss(_dpo, _REFERENCE),
  "smoothed_dpo": OfflineLoss(_smoothed_dpo, _REFERENCE, smooths=True),
  "robust_dpo": OfflineLoss(_robust_dpo, _REFERENCE, smooths=True),
  "h_dpo": OfflineLoss(_h_dpo, _BOTH),
  "ipo": OfflineLoss(_ipo, _REFERENCE),
  "cpo": OfflineLoss(_cpo, _ENTROPY, needs_reference=False),
  "simpo": OfflineLoss(_simpo, _ENTROPY, needs_reference=False, normalised=True),
  "length_normalised_spl": OfflineLoss(_normalised_spl, _BOTH, normalised=True),
  "length_normalised_ipo": OfflineLoss(_normalised_ipo, _REFERENCE, normalised=True),
  "kto": OfflineLoss(_kto, _REFERENCE, responses=3, smooths=True),
  "nll": OfflineLoss(_nll, _ENTROPY, needs_reference=False, responses=1, weighted=False, smooths=True, per_token=True),
  "listwise": OfflineLoss(_listwise, _BOTH, lists=True, smooths=True),
  "regression": OfflineLoss(_regression, _BOTH, lists=True, weighted=False, smooths=True),
}
