"""Exact checks for losses and policies, by enumeration instead of sampling."""

from qempo_jax.testing.check_loss import check_loss
from qempo_jax.testing.check_loss import default_problem
from qempo_jax.testing.check_loss import loss_of_score_weights
from qempo_jax.testing.enumerable import EnumerablePolicy
from qempo_jax.testing.expectation import Pair
from qempo_jax.testing.expectation import Samples
from qempo_jax.testing.problems import Problem
from qempo_jax.testing.problems import random_problem
from qempo_jax.testing.report import CheckReport
from qempo_jax.testing.sequence_space import SequenceSpace
from qempo_jax.testing.sequence_space import sequence_space
from qempo_jax.testing.sequence_space import space_of_sequences

__all__ = [
  "CheckReport",
  "EnumerablePolicy",
  "Pair",
  "Problem",
  "Samples",
  "SequenceSpace",
  "check_loss",
  "default_problem",
  "loss_of_score_weights",
  "random_problem",
  "sequence_space",
  "space_of_sequences",
]
