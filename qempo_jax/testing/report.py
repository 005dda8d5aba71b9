"""The report of `check_loss`."""

from typing import NamedTuple

from qempo_jax.testing.padding import COUNTS
from qempo_jax.testing.padding import IGNORED
from qempo_jax.testing.padding import NAN_SPREADS

_PADDING = {
  IGNORED: "ignored, even NaN",
  NAN_SPREADS: "finite values are ignored, NaN is not (x * mask spreads it; jnp.where(mask, x, 0) does not)",
  COUNTS: "WRONG, what it holds changes the gradient",
}


class CheckReport(NamedTuple):
  """Result of `check_loss`; printing it gives a summary.

  Attributes:
    ok: True if the stationary point is right, the gradient is that of J if required, and padding is ignored.
    gradient_is_right: True if minus the expected gradient is a positive multiple of grad J; None for pairs, which
      estimate no such gradient.
    gradient_error: distance from the nearest positive multiple, relative to the gradient.
    scale: that multiple.
    stationary_is_right: True if the expected gradient vanishes at pi ∝ q^(beta/alpha) exp(r/alpha).
    stationary_gradient: its norm there, relative to elsewhere.
    variance: trace of the gradient's covariance for one group or pair, divided by scale^2 if defined.
    reference_variance: the same of the leave-one-out policy gradient of the shaped reward; None for pairs and
      off-policy.
    mistakes: names of the known mistakes with this signature.
    padding: "ignored", "NaN spreads" (finite values are ignored) or "counts"; None for pairs, which have none.
    finite: smallest probability, over the tested points, that the loss and its gradient are finite.
  """

  ok: bool
  gradient_is_right: bool | None
  gradient_error: float | None
  scale: float | None
  stationary_is_right: bool
  stationary_gradient: float
  variance: float
  reference_variance: float | None
  mistakes: tuple[str, ...]
  padding: str | None = None
  finite: float = 1.0

  def __str__(self) -> str:
    lines = ["OK" if self.ok else "NOT OK"]
    if self.finite < 1:
      lines.append(f"loss and gradient: finite with probability {self.finite:.3g} only")
    elif self.gradient_is_right is not None:
      verdict = (
        "not that of J, nor need it be" if self.ok and not self.gradient_is_right else _yes(self.gradient_is_right)
      )
      lines.append(
        f"expected gradient: {verdict} (relative error {self.gradient_error:.1e}, {self.scale:.4g} x grad J)"
      )
    if self.finite == 1:
      lines.append(
        f"stationary point: {_yes(self.stationary_is_right)} (relative gradient there {self.stationary_gradient:.1e})"
      )
      lines.append(f"variance: {self.variance:.4g}")
      if self.reference_variance is not None:
        lines[-1] += f" (leave-one-out policy gradient: {self.reference_variance:.4g})"
    if self.padding is not None:
      lines.append(f"padding: {_PADDING[self.padding]}")
    return "\n  ".join(lines + [f"looks like: {name}" for name in self.mistakes])


def _yes(right: bool) -> str:
  return "right" if right else "WRONG"
