"""Equivalent hyper-parameters of two methods with the same objective.

    >>> print(translate("dpo", "spl", beta=0.1))
    dpo(beta=0.1) = spl(alpha=0.1, beta=0.1)

Every method below maximises E[r] + alpha H(pi) + beta E[log q]. Two are the same objective exactly if their
(alpha, beta) agree. SimPO, IPO, KTO and the length-normalised losses are outside the family and have no translation.
"""

from collections.abc import Callable
import math
from typing import NamedTuple

from qempo_jax.errors import InputError


class Translation(NamedTuple):
  """One objective under two names.

  Attributes:
    source: method of the given hyper-parameters.
    given: hyper-parameters of `source`.
    target: the other method.
    hyper_parameters: equivalent hyper-parameters of `target`.
    alpha: entropy weight, reward units per nat.
    beta: reference weight, reward units per nat.
  """

  source: str
  given: dict[str, float]
  target: str
  hyper_parameters: dict[str, float]
  alpha: float
  beta: float

  def __str__(self) -> str:
    return f"{_call(self.source, self.given)} = {_call(self.target, self.hyper_parameters)}"


def translate(source: str, target: str, **hyper_parameters: float) -> Translation:
  """Finds hyper-parameters that make `target` the same objective as `source`.

      qempo_kl: alpha = (1 + mu) / lambda, beta = mu / lambda       qempo: beta = 0, alpha = 1 / lambda
      dpo, rlhf: alpha = beta       h_dpo: alpha = a beta       cpo without NLL: alpha = its beta, beta = 0

  Args:
    source: one of `METHODS`.
    target: one of `METHODS`.
    **hyper_parameters: hyper-parameters of `source`, named as in its loss function.

  Returns:
    `Translation`; printing it gives the equation.

  Raises:
    InputError: a method or hyper-parameter is unknown, or `target` cannot express the objective.
  """
  for method in (source, target):
    if method not in METHODS:
      raise InputError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
  names = METHODS[source].names
  if set(names) != set(hyper_parameters):
    raise InputError(f"{source} takes {', '.join(names)}; given: {', '.join(hyper_parameters) or 'nothing'}")
  alpha, beta = METHODS[source].to_weights(**hyper_parameters)
  values = METHODS[target].from_weights(alpha, beta)
  if values is None:
    raise InputError(
      f"{_call(source, hyper_parameters)} has alpha = {alpha:.6g}, beta = {beta:.6g}, "
      f"which {target} cannot express: it needs {METHODS[target].needs}"
    )
  return Translation(
    source,
    hyper_parameters,
    target,
    dict(zip(METHODS[target].names, values, strict=True)),
    alpha,
    beta,
  )


class _Method(NamedTuple):
  names: tuple[str, ...]
  to_weights: Callable[..., tuple[float, float]]
  from_weights: Callable[[float, float], tuple[float, ...] | None]
  needs: str


def _cpo_weights(beta: float, nll_weight: float) -> tuple[float, float]:
  if nll_weight != 0:
    raise InputError("cpo with an NLL term is outside the family; only nll_weight=0 translates")
  return beta, 0.0


def _qempo_kl_weights(quality_multiplier: float, kl_multiplier: float) -> tuple[float, float]:
  if quality_multiplier <= 0:
    raise InputError("quality_multiplier must be positive: at 0 the reward has no effect and alpha is infinite")
  return (1 + kl_multiplier) / quality_multiplier, kl_multiplier / quality_multiplier


def _no_reference(beta: float) -> bool:
  return math.isclose(beta, 0.0, abs_tol=1e-12)


_WEIGHTS = _Method(("alpha", "beta"), lambda alpha, beta: (alpha, beta), lambda a, b: (a, b), "nothing")
_KL_PENALTY = _Method(
  ("beta",),
  lambda beta: (beta, beta),
  lambda a, b: (a,) if math.isclose(a, b) else None,
  "alpha = beta",
)
METHODS: dict[str, _Method] = {
  "preference": _WEIGHTS,
  "spl": _WEIGHTS,
  "trajectory_balance": _WEIGHTS,
  "qempo": _Method(
    ("alpha",),
    lambda alpha: (alpha, 0.0),
    lambda a, b: (a,) if _no_reference(b) else None,
    "beta = 0",
  ),
  "qempo_kl": _Method(
    ("quality_multiplier", "kl_multiplier"),
    _qempo_kl_weights,
    lambda a, b: (1 / (a - b), b / (a - b)) if 0 <= b < a and not math.isclose(a, b) else None,
    "0 <= beta < alpha (at alpha = beta both multipliers are infinite)",
  ),
  "dpo": _KL_PENALTY,
  "rlhf": _KL_PENALTY,
  "h_dpo": _Method(
    ("entropy_ratio", "beta"),
    lambda entropy_ratio, beta: (entropy_ratio * beta, beta),
    lambda a, b: None if _no_reference(b) else (a / b, b),
    "beta other than 0",
  ),
  "cpo": _Method(
    ("beta", "nll_weight"),
    _cpo_weights,
    lambda a, b: (a, 0.0) if _no_reference(b) else None,
    "beta = 0",
  ),
}


def _call(method: str, hyper_parameters: dict[str, float]) -> str:
  return f"{method}({', '.join(f'{name}={value:.6g}' for name, value in hyper_parameters.items())})"
