"""The losses in NumPy, written from their formulas: slow, in double precision, for tests.

One example a call, arguments as in `qempo_jax.losses`; functions of a group of samples are in `reference_groups`.
"""

import numpy as np


def log_sigmoid(x):
  """log(1 / (1 + e^-x)) without overflow."""
  return -np.logaddexp(0.0, -np.float64(x))


def sigmoid(x):
  """1 / (1 + e^-x) without overflow."""
  return np.exp(log_sigmoid(x))


def preference_loss(win, lose, ref_win, ref_lose, *, alpha, beta):
  """-log sigmoid(alpha (win - lose) - beta (ref_win - ref_lose))."""
  return -log_sigmoid(alpha * (np.float64(win) - lose) - beta * (np.float64(ref_win) - ref_lose))


def preference_margin(win, lose, ref_win, ref_lose, *, alpha, beta):
  """alpha (win - lose) - beta (ref_win - ref_lose)."""
  return alpha * (np.float64(win) - lose) - beta * (np.float64(ref_win) - ref_lose)


def qempo_loss(win, lose, *, alpha):
  """-log sigmoid(alpha (win - lose))."""
  return -log_sigmoid(alpha * (np.float64(win) - lose))


def qempo_kl_loss(win, lose, ref_win, ref_lose, *, quality_multiplier, kl_multiplier):
  """-log sigmoid([(1 + mu) (win - lose) - mu (ref_win - ref_lose)] / lambda)."""
  mu = kl_multiplier
  return -log_sigmoid(
    ((1 + mu) * (np.float64(win) - lose) - mu * (np.float64(ref_win) - ref_lose)) / quality_multiplier
  )


def dpo_loss(win, lose, ref_win, ref_lose, *, beta):
  """-log sigmoid(beta [(win - ref_win) - (lose - ref_lose)])."""
  return -log_sigmoid(beta * ((np.float64(win) - ref_win) - (np.float64(lose) - ref_lose)))


def h_dpo_loss(win, lose, ref_win, ref_lose, *, entropy_ratio, beta):
  """-log sigmoid(a beta (win - lose) - beta (ref_win - ref_lose))."""
  return -log_sigmoid(entropy_ratio * beta * (np.float64(win) - lose) - beta * (np.float64(ref_win) - ref_lose))


def smoothed_dpo_loss(win, lose, ref_win, ref_lose, *, beta, label_smoothing):
  """(1 - e) DPO + e DPO of the flipped pair."""
  kept, flipped = (
    dpo_loss(win, lose, ref_win, ref_lose, beta=beta),
    dpo_loss(lose, win, ref_lose, ref_win, beta=beta),
  )
  return (1 - label_smoothing) * kept + label_smoothing * flipped


def robust_dpo_loss(win, lose, ref_win, ref_lose, *, beta, label_smoothing):
  """[(1 - e) DPO - e DPO of the flipped pair] / (1 - 2 e)."""
  kept, flipped = (
    dpo_loss(win, lose, ref_win, ref_lose, beta=beta),
    dpo_loss(lose, win, ref_lose, ref_win, beta=beta),
  )
  return ((1 - label_smoothing) * kept - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def ipo_loss(win, lose, ref_win, ref_lose, *, tau):
  """([(win - ref_win) - (lose - ref_lose)] - 1 / (2 tau))^2."""
  return ((np.float64(win) - ref_win) - (np.float64(lose) - ref_lose) - 1 / (2 * tau)) ** 2


def cpo_loss(win, lose, *, beta, nll_weight):
  """-log sigmoid(beta (win - lose)) - nll_weight win."""
  return -log_sigmoid(beta * (np.float64(win) - lose)) - nll_weight * win


def simpo_loss(win, lose, len_win, len_lose, *, beta, margin):
  """-log sigmoid(beta (win / |win| - lose / |lose|) - margin)."""
  return -log_sigmoid(beta * (np.float64(win) / len_win - lose / len_lose) - margin)


def length_normalised_preference_loss(win, lose, ref_win, ref_lose, len_win, len_lose, *, alpha, beta):
  """-log sigmoid(alpha (win / |win| - lose / |lose|) - beta (ref_win / |win| - ref_lose / |lose|))."""
  return -log_sigmoid(
    alpha * (np.float64(win) / len_win - lose / len_lose) - beta * (np.float64(ref_win) / len_win - ref_lose / len_lose)
  )


def length_normalised_ipo_loss(win, lose, ref_win, ref_lose, len_win, len_lose, *, tau):
  """((win - ref_win) / |win| - (lose - ref_lose) / |lose| - 1 / (2 tau))^2."""
  return ((np.float64(win) - ref_win) / len_win - (np.float64(lose) - ref_lose) / len_lose - 1 / (2 * tau)) ** 2


def kto_loss(log_prob, ref_log_prob, desirable, reference_kl, *, beta, desirable_weight, undesirable_weight):
  """weight (1 - sigmoid(+-beta (log pi - log q - max(kl, 0))))."""
  gap = np.float64(log_prob) - ref_log_prob - max(reference_kl, 0.0)
  if desirable:
    return desirable_weight * (1 - sigmoid(beta * gap))
  return undesirable_weight * (1 - sigmoid(-beta * gap))


def bradley_terry_loss(r_win, r_lose, margin, *, centring_weight):
  """-log sigmoid(r_win - r_lose - margin) + c (r_win + r_lose)^2."""
  return -log_sigmoid(np.float64(r_win) - r_lose - margin) + centring_weight * (np.float64(r_win) + r_lose) ** 2


def nll_loss(token_log_probs, mask):
  """-sum_t mask_t log pi_t."""
  return -sum(np.float64(x) for x, m in zip(token_log_probs, mask, strict=True) if m)


def nll_anchor(win, *, weight):
  """-weight win."""
  return -weight * np.float64(win)


def policy_gradient_loss(token_log_probs, advantages, mask):
  """-sum_t mask_t A_t log pi_t."""
  advantages = np.broadcast_to(np.asarray(advantages, np.float64), np.shape(mask))
  return -sum(a * x for a, x, m in zip(advantages, np.float64(token_log_probs), mask, strict=True) if m)


def token_entropy_bonus_loss(token_log_probs, token_entropies, advantages, mask, *, entropy_weight):
  """-sum_t mask_t (A_t log pi_t + w h_t)."""
  bonus = sum(np.float64(h) for h, m in zip(token_entropies, mask, strict=True) if m)
  return policy_gradient_loss(token_log_probs, advantages, mask) - entropy_weight * bonus


def ppo_clip_loss(token_log_probs, old_token_log_probs, advantages, mask, *, clip_low, clip_high):
  """-sum_t mask_t min(rho_t A_t, clip(rho_t) A_t)."""
  total, advantages = 0.0, np.broadcast_to(np.asarray(advantages, np.float64), np.shape(mask))
  for new, old, a, m in zip(
    np.float64(token_log_probs), np.float64(old_token_log_probs), advantages, mask, strict=True
  ):
    if m:
      rho = np.exp(new - old)
      total -= min(rho * a, min(max(rho, 1 - clip_low), 1 + clip_high) * a)
  return total


def grpo_loss(token_log_probs, old_token_log_probs, advantages, mask, *, clip_low, clip_high):
  """PPO's sum over the number of tokens."""
  loss = ppo_clip_loss(token_log_probs, old_token_log_probs, advantages, mask, clip_low=clip_low, clip_high=clip_high)
  return loss / max(np.sum(mask), 1)


def dr_grpo_loss(token_log_probs, old_token_log_probs, advantages, mask, *, clip_low, clip_high, max_tokens):
  """PPO's sum over a constant."""
  loss = ppo_clip_loss(token_log_probs, old_token_log_probs, advantages, mask, clip_low=clip_low, clip_high=clip_high)
  return loss / max_tokens


def sequence_clip_loss(token_log_probs, old_token_log_probs, advantage, mask, *, clip_low, clip_high):
  """-min(rho A, clip(rho) A) with rho = pi(y) / pi_old(y)."""
  keep = np.asarray(mask, bool)
  rho = np.exp(np.sum(np.float64(token_log_probs)[keep]) - np.sum(np.float64(old_token_log_probs)[keep]))
  return -min(rho * advantage, np.clip(rho, 1 - clip_low, 1 + clip_high) * advantage) if keep.any() else 0.0


def gspo_loss(token_log_probs, old_token_log_probs, advantage, mask, *, clip_low, clip_high):
  """-min(s A, clip(s) A) with s = (pi(y) / pi_old(y))^(1 / |y|)."""
  keep = np.asarray(mask, bool)
  if not keep.any():
    return 0.0
  s = np.exp(np.mean((np.float64(token_log_probs) - np.float64(old_token_log_probs))[keep]))
  return -min(s * advantage, np.clip(s, 1 - clip_low, 1 + clip_high) * advantage)
