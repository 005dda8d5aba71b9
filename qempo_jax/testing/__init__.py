"""Exact checks for losses and policies: enumeration in place of sampling."""

from qempo_jax.testing.check_loss import (
  CheckReport,
  check_loss,
  default_problem,
  loss_of_score_weights,
)
from qempo_jax.testing.enumerable import EnumerablePolicy
from qempo_jax.testing.expectation import Pair, Samples
from qempo_jax.testing.problems import Problem, random_problem
from qempo_jax.testing.sequence_space import SequenceSpace, sequence_space, space_of_sequences

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
