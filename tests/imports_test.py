"""Allowed imports: data flows one way, and the mathematics depends on JAX alone."""

import ast
from collections.abc import Iterator
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "qempo_jax"

# Packages that the mathematics may import besides the standard library and itself.
CORE = {"chex", "flax", "jax", "numpy", "optax"}
PURE = (
  "losses",
  "duals",
  "family",
  "exact",
  "advantages",
  "estimators",
  "token_stats",
  "linear",
  "sampled_duals",
  "sampled_evidence",
)
NOT_PURE = ("models", "data", "sampling", "rewards", "evaluation")
IMPORT_SECONDS = 1.5
UPSTREAM = {"absl", "configs", "experiments", "ml_collections", "tests"}
HEAVY = {
  "datasets",
  "gguf",
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
  """Returns the imports of one module of the package."""
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


def test_the_library_never_imports_configs_or_experiments():
  upstream = {module: {name for name in imports_of(module) if name.split(".")[0] in UPSTREAM} for module in MODULES}
  assert len(upstream) > 100 and not {module: names for module, names in upstream.items() if names}


def test_the_mathematics_imports_no_models_and_nothing_heavy():
  allowed, offenders = CORE | sys.stdlib_module_names | {"qempo_jax"}, []
  for module in pure_modules():
    for reached in reached_from(module):
      foreign = {name for name in imports_of(reached) if name.split(".")[0] not in allowed}
      if foreign or reached.split(".")[1] in NOT_PURE:
        offenders.append(f"{module} reaches {reached}, which imports {foreign}")
  assert not offenders


PROGRAM = """
import sys, time, jax
start = time.process_time()
import qempo_jax
print(time.process_time() - start)
import qempo_jax.data.tokenization, qempo_jax.models.demo_model
print(*{name.split(".")[0] for name in sys.modules})
"""


def test_importing_the_package_takes_little_beyond_jax_and_loads_nothing_heavy():
  """CPU time of a fresh process, the best of several: a busy machine lengthens neither. Tokenization is as light."""
  seconds = []
  while len(seconds) < 5 and min(seconds, default=IMPORT_SECONDS) >= IMPORT_SECONDS:
    result = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
    taken, loaded = result.stdout.splitlines()
    seconds.append(float(taken))
    assert {"qempo_jax", "jax"} <= set(loaded.split()) and not set(loaded.split()) & HEAVY
  assert min(seconds) < IMPORT_SECONDS, seconds


def test_the_programs_start_without_the_heavy_packages():
  """PyTorch took half of a program's start where it is installed: tensorboardX imports it."""
  program = "import sys, experiments.train, experiments.evaluate, experiments.export; print(*sys.modules)"
  result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
  loaded = {name.split(".")[0] for name in result.stdout.split()}
  assert "tensorboardX" in loaded and not loaded & (HEAVY - {"matplotlib", "ml_collections", "orbax"})
