"""Check that a step reuses the memory of its state, without a second copy."""

import contextlib
import warnings

import jax


@contextlib.contextmanager
def checked(state):
  """Fails where the step within could not use a donated array, or left one of the state's alive."""
  with warnings.catch_warnings():
    warnings.filterwarnings("error", message=".*donated.*")
    yield
  alive = [
    jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(state) if not leaf.is_deleted()
  ]
  assert not alive, f"not donated: {alive}"
