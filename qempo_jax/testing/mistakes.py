"""Identification of known mistakes from the expected gradient of a loss.

Right losses follow grad J = grad E[r] + alpha grad H + beta grad E[log q], up to a positive factor. A wrong estimator
replaces one part by another vector. `explain` fits the weights of the parts by least squares, with as few wrong parts
as possible, so that a part may have any baseline and scale. The weights of the remaining right parts show an entropy
that is missing, doubled or of the wrong sign. With a coherence constraint, E[1{r < tau} log q] replaces E[log q].
"""

from collections.abc import Iterator
import itertools

import numpy as np

from qempo_jax.testing.mistake_parts import parts
from qempo_jax.testing.problems import Problem

PADDING = "mask forgotten: what padding holds changes the gradient"
NAN = "NaN: the loss or its gradient is not finite for some samples"
NO_GRADIENT = "no gradient: the loss does not depend on the policy's log-probs, or only through stop_gradient"
FLIPPED = "flipped sign: the loss is maximised where it should be minimised"
_K1_ENTROPY = "k1 entropy in the loss: log pi of samples, differentiated, has zero expected gradient; or no entropy"
_K1_KL = "k1 in the loss: log pi - log q of samples, differentiated, has zero expected gradient; or no KL"
_NO_COHERENCE = "no log q on unacceptable samples: the coherence constraint is missing, or differentiated, which has zero expected gradient"
_GROUP_MEAN = (
  "group mean on the reward alone: it weighs (G - 1) / G, and so alpha and beta G / (G - 1) of what is asked"
)
_NO_REWARD = "no reward: the expected gradient does not contain that of E[r]"

_STD_SHAPED = "std-normalised shaped reward: prompts are weighted by 1 / std"
_STD_REWARD = "std-normalised reward: alpha and beta change with every group"
_LENGTH = "length-normalised policy gradient: long responses weigh less"
_GROUP_TOKENS = "token mean over the group: a response's weight depends on the others' lengths"
_LIVE = "forgotten stop_gradient on the shaped reward"
_UNWEIGHTED = "importance weights are missing: samples of the earlier policy are taken for the policy's own"
# Each family: the names of a mistake and the parts that take the place of a right one.
_REWARD = [
  ((), ("reward",)),
  ((_STD_SHAPED,), ("std_shaped",)),
  ((_STD_REWARD,), ("std_reward",)),
  ((_LENGTH,), ("length_shaped", "length_shaped_base")),
  ((_LENGTH,), ("length_reward", "length_reward_base")),
  ((_STD_SHAPED, _LENGTH), ("std_shaped_length",)),
  ((_STD_REWARD, _LENGTH), ("std_reward_length",)),
  ((_GROUP_TOKENS,), ("group_tokens_shaped",)),
  ((_GROUP_TOKENS,), ("group_tokens_reward",)),
  ((_STD_SHAPED, _GROUP_TOKENS), ("group_tokens_std_shaped",)),
  ((_STD_REWARD, _GROUP_TOKENS), ("group_tokens_std_reward",)),
  ((_STD_SHAPED, _LIVE), ("std_shaped_live",)),
]
_OFF_POLICY = [
  ((_UNWEIGHTED,), ("unweighted_shaped", "unweighted_shaped_base")),
  ((_UNWEIGHTED,), ("unweighted_reward", "unweighted_reward_base")),
]
_ENTROPY = [
  ((), ()),
  (("token-only entropy: the effect of a token on the entropy after it is missing",), ("token_entropy",)),
  (("entropy per token: a mean over tokens, not the entropy of the response",), ("token_entropy_mean",)),
  (("stale log-probs in the shaped reward: the entropy has become a cross-entropy",), ("stale_entropy",)),
]
_KL = [
  ((), ()),
  (("k3 in the loss: its gradient is that of the forward KL",), ("k3_loss",)),
  (("k3 per token in the loss: a forward KL without its effect on later tokens",), ("k3_token_loss",)),
  (("k3 in the loss as a mean over tokens: long responses are held less",), ("k3_token_mean_loss",)),
  (("k2 or the exact KL per token in the loss: its effect on later tokens is missing",), ("token_kl",)),
  (("k3 in the reward: grad KL(pi||q) - grad KL(q||pi)",), ("k3_reward",)),
  (("k2 in the reward: not a KL's gradient",), ("k2_reward",)),
  (("k3 per token in the reward",), ("k3_token_reward",)),
]


def explain(
  found: np.ndarray,
  problem: Problem,
  *,
  alpha: float,
  beta: float,
  group_size: int,
  behaviour: str = "policy",
  threshold: float | None = None,
  tolerance: float = 1e-3,
) -> tuple[str, ...]:
  """Returns the names of the fewest mistakes under which a loss follows this gradient; none if it is like no other.

  Args:
    found: [points * D] minus the expected gradient at the points of the problem.
    problem: the enumerable problem of the check.
    alpha: entropy weight of J.
    beta: reference weight of J.
    group_size: G of the check.
    behaviour: "policy" or "old", which sampled the groups.
    threshold: tau of J's coherence constraint; None for a reference term on every sample.
    tolerance: largest distance of a fit, relative to the gradient.
  """
  found = np.asarray(found, np.float64)
  if not np.isfinite(found).all():
    return (NAN,)
  norm = np.linalg.norm(found)
  if norm == 0:
    return (NO_GRADIENT,)
  columns = parts(problem, alpha=alpha, beta=beta, group_size=group_size, threshold=threshold)
  right = ("entropy", "reference") + ("coherence",) * (threshold is not None)
  families = (_REWARD + _OFF_POLICY * (behaviour == "old"), _ENTROPY, _KL)
  combinations = sorted(itertools.product(*families), key=_num_mistakes)
  for _, same_number in itertools.groupby(combinations, key=_num_mistakes):
    fits = []
    for reward, entropy, kl in same_number:
      names = (*reward[1], *right, *entropy[1], *kl[1])
      error, weights = _fit([columns[name] for name in names], found)
      fits.append((error / norm, dict(zip(names, weights, strict=True)), (reward, entropy, kl)))
    near = [fit for fit in fits if fit[0] < tolerance]
    if near:
      _, weights, combination = min(near, key=lambda fit: (not _meant(*fit[1:]), fit[0]))
      return tuple(_named(weights, combination, alpha=alpha, beta=beta, group_size=group_size))
  return ()


def _num_mistakes(combination) -> int:
  return sum(len(names) for names, _ in combination)


def _fit(columns: list[np.ndarray], found: np.ndarray) -> tuple[float, np.ndarray]:
  """(distance, weights) of the nearest combination of columns."""
  matrix = np.stack(columns, axis=1)
  size = np.maximum(np.linalg.norm(matrix, axis=0), 1e-300)
  weights = np.linalg.lstsq(matrix / size, found, rcond=1e-10)[0] / size
  return np.linalg.norm(matrix @ weights - found), weights


def _meant(weights, combination) -> bool:
  """True if an entropy is rewarded and a KL penalised: k3 in the loss and in the reward differ by a right KL."""
  (_, reward), (_, entropy), (_, kl) = combination
  unit = weights[reward[0]]
  return all(weights[name] * unit > 0 for name in entropy) and all(weights[name] * unit < 0 for name in kl)


def _named(weights, combination, *, alpha: float, beta: float, group_size: int) -> Iterator[str]:
  (wrong_reward, reward), (wrong_entropy, _), (wrong_kl, _) = combination
  unit, h, q = weights[reward[0]], weights["entropy"], weights["reference"]
  coherence = weights.get("coherence")
  missing_reference, term = (_K1_KL, q) if coherence is None else (_NO_COHERENCE, coherence)
  small = 1e-2 * max(abs(alpha), abs(beta))
  needs_entropy = coherence is not None or abs(alpha - beta) > small  # else a KL's estimate may hold all of it
  others = (*wrong_entropy, *wrong_kl)
  yield from wrong_reward
  if not wrong_reward and abs(unit) < 1e-3 * max(map(abs, weights.values())):
    yield _NO_REWARD
  elif others:
    if unit < 0:
      yield FLIPPED
    unit = abs(unit)
    apart = "shaped" not in reward[0]  # a shaped reward has its entropy and reference within
    if apart and not wrong_entropy and abs(h) < small * unit and needs_entropy:
      yield _K1_ENTROPY
    if apart and not (wrong_kl and coherence is None) and abs(term) < small * unit and abs(beta) > small:
      yield missing_reference
  elif wrong_reward:  # the scale of the rest is not known
    if unit < 0:
      yield FLIPPED
    if reward[0].endswith("reward"):
      missing = [abs(h) < small * abs(unit), abs(term) < small * abs(unit) and abs(beta) > small]
      yield from itertools.compress((_K1_ENTROPY, missing_reference), missing)
  else:
    found = (h / unit, q / unit) if coherence is None else (h / unit, q / unit, coherence / unit)
    yield from _of_right_parts(found, unit < 0, alpha=alpha, beta=beta, group_size=group_size)
  yield from others


def _of_right_parts(
  found: tuple[float, ...], flipped: bool, *, alpha: float, beta: float, group_size: int
) -> Iterator[str]:
  """Names mistakes from the weights of grad H, grad E[log q] and, with a constraint, grad E[1{r < tau} log q].

  Weights are relative to that of grad E[r].
  """
  near = 1e-2 * max(abs(alpha), abs(beta))
  if group_size == 1:
    group_size = np.inf
  table = (_reference_weights if len(found) == 2 else _coherence_weights)(alpha, beta)
  for scale, names_of_scale in ((1.0, ()), (1 - 1 / group_size, (_GROUP_MEAN,))):
    for names, targets in table.items():
      if any(sum(abs(x * scale - y) for x, y in zip(found, target, strict=True)) < near for target in targets):
        if names == ("flipped sign of the reward",):
          yield from (*names, *names_of_scale)
        else:
          yield from (*((FLIPPED,) if flipped else ()), *names, *names_of_scale)
        return
  if flipped:
    yield FLIPPED
  terms = zip(found, ("H", "E[log q]", "E[1{r < tau} log q]"), strict=False)
  yield "other weights: it maximises E[r]" + "".join(
    f" + {round(weight, 9) + 0.0:.3g} {term}" for weight, term in terms
  )


def _reference_weights(a: float, b: float) -> dict[tuple[str, ...], list[tuple[float, ...]]]:
  """Weights of (H, E[log q]) under each mistake; the entropy may be estimated with or without the KL's."""
  return {
    (): [(a, b)],
    (_K1_ENTROPY,): [(b, b), (0, b)],
    (_K1_KL,): [(a - b, 0), (a, 0)],
    (_K1_ENTROPY, _K1_KL): [(0, 0)],
    ("forgotten stop_gradient on the shaped reward: its entropy counts twice",): [
      (2 * a, b),
      (a + b, b),
      (2 * a - b, b),
    ],
    ("flipped sign of the entropy",): [(-a, b), (2 * b - a, b)],
    ("flipped sign of the KL",): [(a - 2 * b, -b), (a, -b)],
    ("flipped sign of the reward",): [(-a, -b)],
    ("alpha and beta exchanged",): [(b, a)],
  }


def _coherence_weights(a: float, b: float) -> dict[tuple[str, ...], list[tuple[float, ...]]]:
  """Weights of (H, E[log q], E[1{r < tau} log q]) under each mistake."""
  return {
    (): [(a, 0, b)],
    (_NO_COHERENCE,): [(a, 0, 0)],
    (_K1_ENTROPY,): [(0, 0, b)],
    (_K1_ENTROPY, _NO_COHERENCE): [(0, 0, 0)],
    ("flipped sign of the coherence constraint: it asks for text that the reference would not write",): [(a, 0, -b)],
    ("log q on every sample: acceptable ones should be free of the reference",): [(a, b, 0), (a + b, b, 0)],
    ("log q on acceptable samples in place of unacceptable ones",): [(a, b, -b)],
    ("forgotten stop_gradient on the shaped reward: its entropy counts twice",): [(2 * a, 0, b)],
    ("flipped sign of the entropy",): [(-a, 0, b)],
    ("flipped sign of the reward",): [(-a, 0, -b)],
  }
