"""Alignment of language models with diverse outputs: maximum entropy under a quality floor, in JAX.

`import qempo_jax` brings the mathematics (`family`, `exact`, `duals`, `losses`, `advantages`, `estimators`,
`token_stats`, `testing`), which is light and composable. Modules with heavier dependencies (models, data, evaluation)
are imported by their own names.
"""

from qempo_jax import advantages
from qempo_jax import constraints
from qempo_jax import duals
from qempo_jax import errors
from qempo_jax import estimators
from qempo_jax import exact
from qempo_jax import family
from qempo_jax import losses
from qempo_jax import methods
from qempo_jax import sampled_duals
from qempo_jax import sampled_evidence
from qempo_jax import testing
from qempo_jax import token_stats
from qempo_jax import train
from qempo_jax.methods.group_loss import group_loss

__version__ = "0.1.0"
__all__ = [
  "advantages",
  "constraints",
  "duals",
  "errors",
  "estimators",
  "exact",
  "family",
  "group_loss",
  "losses",
  "methods",
  "sampled_duals",
  "sampled_evidence",
  "testing",
  "token_stats",
  "train",
]
