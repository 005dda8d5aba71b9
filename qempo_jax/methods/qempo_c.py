"""QEMPO-C: maximum entropy under a quality floor, where unacceptable text must be likely under the reference."""

from qempo_jax.methods import method
from qempo_jax.methods.qempo import ENTROPY_GRADIENTS


def qempo_c(*, nu: float = 1.0, entropy_gradient: str = "score_function") -> method.Method:
  """max H(pi) s.t. E[r] >= R, E[1{r < tau} (-log q)] <= C; nu, the multiplier of C, fixed unless the constraint has a bound.

      s = lambda r - log pi + nu 1{r < tau} log q,     optimum pi ∝ q^(nu 1{r < tau}) exp(lambda r)

  With nu >= 1 the partition function is finite whatever the length of the responses: the multiplier of the floor no
  longer pays for the volume of garbage, so it stays small and the entropy acts among acceptable answers. On acceptable
  responses `mara` climbs the same up to a constant of the group; here lambda follows from the floor.

  Source: the family of programs of arXiv 2602.15894 with another linear constraint; see `exact.solve_qempo_coherent`.

  Args:
    nu: multiplier of the coherence constraint.
    entropy_gradient: as in `qempo`.
  """
  return method.Method(entropy=ENTROPY_GRADIENTS[entropy_gradient], multipliers={"kl": 0.0, "coherence": nu})
