"""QEMPO-C: maximum entropy under a quality floor, with unacceptable text required to be likely under the reference."""

from qempo_jax.methods import method
from qempo_jax.methods.qempo import ENTROPY_GRADIENTS


def qempo_c(*, nu: float = 1.0, entropy_gradient: str = "score_function") -> method.Method:
  """max H(pi) s.t. E[r] >= R, E[1{r < tau} (-log q)] <= C, with multiplier nu of the coherence constraint.

      s = lambda r - log pi + nu 1{r < tau} log q,     optimum pi ∝ q^(nu 1{r < tau}) exp(lambda r)

  nu is fixed unless the constraint has a bound C. With nu >= 1 the partition function is finite for responses of any
  length. Then lambda does not grow with the volume of garbage: it stays small, and the entropy acts among acceptable
  answers. On acceptable responses `mara` has the same signal up to a constant per group; here lambda follows from the
  floor.

  Source: the family of programs of arXiv 2602.15894 with another linear constraint; see `exact.solve_qempo_coherent`.

  Args:
    nu: multiplier of the coherence constraint.
    entropy_gradient: as in `qempo`.
  """
  return method.Method(entropy=ENTROPY_GRADIENTS[entropy_gradient], multipliers={"kl": 0.0, "coherence": nu})
