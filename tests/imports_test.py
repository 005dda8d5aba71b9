"""Who may import whom: data flows one way, and the mathematics stands on JAX alone."""

import ast
from collections.abc import Iterator
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "qempo_jax"

# What the mathematics may use besides the standard library and itself.
CORE = {"chex", "flax", "jax", "numpy", "optax"}
PURE = (
  "losses", "duals", "family", "exact", "advantages", "estimators", "token_stats", "linear", "sampled_duals",
  "sampled_evidence",
)
NOT_PURE = ("models", "data", "sampling", "rewards", "evaluation")
IMPORT_SECONDS = 1.5
UPSTREAM = {"absl", "configs", "experiments", "ml_collections", "tests"}
HEAVY = {
  "datasets",
  "gguf",
  "grain",
  "matplotlib",
  "ml_collections",
  "orbax",
  "tensorflow",
  "tokenizers",
  "torch",
  "transformers",
}


def module_name(path: pathlib.Path) -> str:
  """Returns the dotted name of a file of the repository."""
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(source: str, package: str) -> Iterator[str]:
  """Yields every module a source names in an import statement, wherever it stands."""
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      base = package.split(".")[: -(node.level - 1) or None] if node.level else []
      module = ".".join([*base, *([node.module] if node.module else [])])
      yield module
      yield from (f"{module}.{alias.name}" for alias in node.names)


def imports_of(module: str) -> set[str]:
  """Returns what one module of the package imports."""
  path = MODULES[module]
  package = module if path.name == "__init__.py" else module.rpartition(".")[0]
  return set(imports(path.read_text(encoding="utf-8"), package))


def reached_from(module: str) -> set[str]:
  """Returns the modules of the package that `module` brings in, itself included.

  `import a.b.c` runs the __init__ files of `a` and `a.b` too; the top one, which names everything, is left out.
  """
  reached, waiting = set(), [module]
  while waiting:
    current = waiting.pop()
    if current in reached or current not in MODULES or current == "qempo_jax":
      continue
    reached.add(current)
    waiting += [current.rpartition(".")[0], *imports_of(current)]
  return reached


def pure_modules() -> list[str]:
  """Returns the modules that hold the mathematics."""
  return [m for m in MODULES if m.split(".")[1:2] and m.split(".")[1] in PURE]


def test_the_reader_of_imports_sees_every_form():
  source = "import a.b\nfrom c import d\ndef f():\n  from . import e\n  from ..g import h\n"
  assert set(imports(source, "p.q")) == {"a.b", "c", "c.d", "p.q", "p.q.e", "p.g", "p.g.h"}


def test_the_mathematics_is_there_to_be_checked():
  assert {m.split(".")[1] for m in pure_modules()} == set(PURE)


@pytest.mark.parametrize("module", MODULES)
def test_the_library_never_imports_configs_or_experiments(module):
  assert not {name for name in imports_of(module) if name.split(".")[0] in UPSTREAM}


@pytest.mark.parametrize("module", pure_modules())
def test_the_mathematics_imports_no_models_and_nothing_heavy(module):
  for reached in reached_from(module):
    assert reached.split(".")[1] not in NOT_PURE, f"{module} reaches {reached}"
    allowed = CORE | sys.stdlib_module_names | {"qempo_jax"}
    foreign = {name for name in imports_of(reached) if name.split(".")[0] not in allowed}
    assert not foreign, f"{reached}, reached from {module}, imports {foreign}"


def loaded_by(statement: str) -> set[str]:
  """Returns the top-level packages in memory after a fresh interpreter ran `statement`."""
  program = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
  result = subprocess.run(
    [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
  )
  return set(result.stdout.split())


def test_importing_the_package_loads_nothing_heavy():
  loaded = loaded_by("import qempo_jax")
  assert {"qempo_jax", "jax"} <= loaded
  assert not loaded & HEAVY


def test_importing_tokenization_loads_nothing_heavy():
  assert not loaded_by("import qempo_jax.data.tokenization, qempo_jax.models.demo_model") & HEAVY


def test_importing_the_package_takes_little_beyond_jax():
  # CPU time of the process, the best of several runs: a busy machine lengthens neither.
  program = (
    "import jax, time; start = time.process_time(); import qempo_jax; "
    "print(time.process_time() - start)"
  )
  command = [sys.executable, "-c", program]
  seconds = []
  for _ in range(5):
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    seconds.append(float(result.stdout))
    if min(seconds) < IMPORT_SECONDS:
      break
  assert min(seconds) < IMPORT_SECONDS, seconds
