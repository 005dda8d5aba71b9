"""The demo model's tokenizer, read once a process: it takes seconds, and no test changes it."""

import functools

from qempo_jax.data import tokenization
from qempo_jax.models.demo_model import demo_model_path


@functools.cache
def load():
  """Reads it from the GGUF file."""
  return tokenization.load_tokenizer(demo_model_path())
