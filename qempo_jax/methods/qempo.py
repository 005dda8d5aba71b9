"""QEMPO: maximum entropy under a quality floor, alone, with a KL budget, or at fixed weights (SPL)."""

from qempo_jax.methods import method

ENTROPY_GRADIENTS = {"score_function": method.score_function, "rao_blackwell": method.rao_blackwell}


def qempo(*, entropy_gradient: str = "score_function") -> method.Method:
  """max H(pi) s.t. E[r] >= R. Optimum pi ∝ exp(lambda r). Source: arXiv 2602.15894 (reconstruction).

  Args:
    entropy_gradient: "score_function" (-log pi in the reward) or "rao_blackwell" (exact next-token entropies).
  """
  return method.Method(entropy=ENTROPY_GRADIENTS[entropy_gradient], multipliers={"kl": 0.0})


def qempo_kl(*, entropy_gradient: str = "score_function") -> method.Method:
  """max H(pi) s.t. E[r] >= R, KL(pi || q) <= K. Optimum pi ∝ q^(mu/(1+mu)) exp(lambda r/(1+mu)).

  Source: arXiv 2602.15894 (reconstruction).

  Args:
    entropy_gradient: as in `qempo`.
  """
  return method.Method(entropy=ENTROPY_GRADIENTS[entropy_gradient])


def spl(*, alpha: float, beta: float, entropy_gradient: str = "score_function") -> method.Method:
  """max E[r] + alpha H(pi) + beta E[log q] at fixed weights: the family of QEMPO-KL without constraints.

  Source: Slocum et al., arXiv 2511.08594.

  Args:
    alpha: entropy weight, reward units a nat.
    beta: reference weight, reward units a nat, below alpha.
    entropy_gradient: as in `qempo`.
  """
  multipliers = {"quality": 1 / (alpha - beta), "kl": beta / (alpha - beta)}
  return method.Method(entropy=ENTROPY_GRADIENTS[entropy_gradient], multipliers=multipliers)
