"""Functions of a group of samples once more in NumPy, straight from their formulas: slow, in double precision.

Arguments as in `qempo_jax.losses`, `qempo_jax.advantages` and `qempo_jax.methods`; members outside the
mask are taken out before anything is computed, and get zero.
"""

import numpy as np

from qempo_jax.testing.reference import log_sigmoid


def trajectory_balance_loss(log_probs, rewards, ref_log_probs, mask=None, *, alpha, beta):
  """mean_k (log Z + log pi_k - s_k)^2, s_k = (r_k + beta log q_k) / alpha, log Z = mean_k (s_k - log pi_k)."""
  log_pi, r, log_q = _kept(mask, log_probs, rewards, ref_log_probs)
  if not len(r):
    return 0.0
  gap = (r + beta * log_q) / alpha - log_pi
  return np.mean((np.mean(gap) - gap) ** 2)


def target_regression_loss(log_probs, target_log_probs, mask=None):
  """mean_k 1/2 (log pi_k - log pi*_k)^2."""
  log_pi, target = _kept(mask, log_probs, target_log_probs)
  return np.mean((log_pi - target) ** 2) / 2 if len(log_pi) else 0.0


def listwise_loss(log_probs, ref_log_probs, chosen, rejected, mask=None, *, pair_weight, alpha, beta):
  """sum_i a_i {-log pi_i - w sum_j b_j log sigmoid(alpha (log pi_i - log pi_j) - beta (log q_i - log q_j))}."""
  total, members = 0.0, list(zip(*_kept(mask, log_probs, ref_log_probs, chosen, rejected)))
  for pi, q, a, _ in members:
    total -= a * pi
    for other_pi, other_q, _, b in members:
      total -= pair_weight * a * b * log_sigmoid(alpha * (pi - other_pi) - beta * (q - other_q))
  return total


def shaped_rewards(rewards, log_probs, ref_log_probs, *, alpha, beta):
  """r - alpha log pi + beta log q."""
  return np.float64(rewards) - alpha * np.float64(log_probs) + beta * np.float64(ref_log_probs)


def lagrangian_rewards(rewards, log_probs, ref_log_probs, *, quality_multiplier, kl_multiplier, entropy_weight):
  """[lambda r - (h + mu) log pi + mu log q] / (h + lambda + mu)."""
  lam, mu, h = quality_multiplier, kl_multiplier, entropy_weight
  total = lam * np.float64(rewards) - (h + mu) * np.float64(log_probs) + mu * np.float64(ref_log_probs)
  return total / (h + lam + mu)


def leave_one_out(x, mask=None):
  """x_k minus the mean of the others; x_k itself where there are none."""
  (kept,) = _kept(mask, x)
  found = [v - np.mean(np.delete(kept, k)) if len(kept) > 1 else v for k, v in enumerate(kept)]
  return _spread(mask, found, x)


def group_mean(x, mask=None):
  """x_k minus the mean of all."""
  (kept,) = _kept(mask, x)
  return _spread(mask, [v - np.mean(kept) for v in kept], x)


def std_normalised(x, mask=None, *, min_std):
  """(x_k minus the mean) over the larger of the standard deviation and a floor."""
  (kept,) = _kept(mask, x)
  return _spread(mask, [(v - np.mean(kept)) / max(np.std(kept), min_std) for v in kept], x)


def mara_rewards(rewards, ref_log_probs, mask=None, *, min_reward, beta):
  """r(z) + beta (log q(z) - log q_k) where r_k >= the floor; z is the likeliest of those."""
  r, log_q = _kept(mask, rewards, ref_log_probs)
  good = [k for k in range(len(r)) if r[k] >= min_reward]
  found = r.copy()
  if good:
    z = max(good, key=lambda k: log_q[k])
    for k in good:
      found[k] = r[z] + beta * (log_q[z] - log_q[k])
  return _spread(mask, found, rewards)


def quality_times_diversity(rewards, distances, mask=None):
  """r_k times the mean distance to the others; zero where there are none."""
  keep = _mask(mask, rewards)
  (r,) = _kept(mask, rewards)
  d = np.float64(distances)[np.ix_(keep, keep)]
  found = [r[k] * np.mean(np.delete(d[k], k)) if len(r) > 1 else 0.0 for k in range(len(r))]
  return _spread(mask, found, rewards)


def leave_one_out_set_diversity(diversity, mask):
  """D(S) - D(S without k), `diversity` being a function of a list of positions; zero for a member alone."""
  everyone = list(np.flatnonzero(np.asarray(mask, bool)))
  without = lambda k: [j for j in everyone if j != k]
  found = [diversity(everyone) - diversity(without(k)) if len(everyone) > 1 else 0.0 for k in everyone]
  return _spread(mask, found, mask)


def kernel_set_diversity(similarities, mask):
  """mean_{i in S} -log(1 + mean_{j in S} k_ij)."""
  return _kernel_diversity(similarities, list(np.flatnonzero(np.asarray(mask, bool))))


def setpo_rewards(similarities, mask=None):
  """What each member adds to the kernel diversity of its group."""
  diversity = lambda members: _kernel_diversity(similarities, members)
  return leave_one_out_set_diversity(diversity, _mask(mask, similarities))


def ucpo_advantages(advantages, log_probs, correct, mask=None, *, tau):
  """n w_k mean A over the correct, w_k = (1 - tau) / n + tau (1 / pi_k) / sum (1 / pi_j); A_k otherwise."""
  a, log_pi, correct = _kept(mask, advantages, log_probs, correct)
  found, right = a.copy(), np.flatnonzero(correct)
  inverse = {k: np.exp(log_pi[right].max() - log_pi[k]) for k in right}
  for k in right:
    w = (1 - tau) / len(right) + tau * inverse[k] / sum(inverse.values())
    found[k] = len(right) * w * np.mean(a[right])
  return _spread(mask, found, advantages)


def _kernel_diversity(similarities, members):
  k = np.float64(similarities)
  mass = [np.mean([k[i, j] for j in members]) for i in members]
  return np.mean([-np.log(1 + m) for m in mass]) if members else 0.0


def _mask(mask, like):
  return np.ones(len(like), bool) if mask is None else np.asarray(mask, bool)


def _kept(mask, *arrays):
  return [np.float64(x)[_mask(mask, x)] for x in arrays]


def _spread(mask, found, like):
  result = np.zeros(len(like))
  result[_mask(mask, like)] = found
  return result
