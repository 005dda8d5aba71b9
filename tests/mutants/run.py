"""Mutation testing: plants each fault of `mutants` in a private copy of a tree and looks for a default test that fails.

    python -m tests.mutants.run --out=tests/mutants/results.json [--only=NAME ...] [--jobs=2] [--root=DIR]

A fault's tests are the mirror of its module and the files that import the module. Without such files, they are the ones
whose imports reach the module through the fewest others. If they all pass, the files one module further away are tried.
Results are written after every mutant, and a second call continues from there. At the end the tests that caught a fault
run on the unchanged tree. A test that fails there too proves nothing, and its mutants are tried again without it.
"""

import argparse
import ast
import collections
from concurrent import futures
import json
import os
import pathlib
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

from tests.mutants import mutants

HERE = pathlib.Path(__file__).parents[2]
LEFT_OUT = shutil.ignore_patterns(
  ".git", ".venv*", "runs", ".jax_cache", ".hypothesis", ".pytest_cache", "__pycache__", "site"
)
STALE = ("reference", "rows")  # folders of the users' cache whose contents a fault may have computed
_FAILED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)


class Imports:
  """The imports among the modules of a tree, read from their sources."""

  def __init__(self, root: pathlib.Path):
    """Lists the modules; each is parsed on first use."""
    files = [
      path.relative_to(root) for top in ("qempo_jax", "experiments", "tests") for path in (root / top).rglob("*.py")
    ]
    self._files = {".".join(file.with_suffix("").parts).removesuffix(".__init__"): file for file in sorted(files)}
    self._root, self._found = root, {}

  def stages(self, file: str, seconds: dict[str, float]) -> dict[str, list[str]]:
    """Test files of a source file: its mirror or the cheapest of the nearest, the other nearest, one module further."""
    module = file.removesuffix(".py").replace("/", ".")
    far = {self._files[test].as_posix(): self._distance(test, module) for test in self._files if test.endswith("_test")}
    mirror = "tests" + file[file.index("/") :].removesuffix(".py") + "_test.py"
    nearest = 0 if mirror in far else min(far.values())
    if mirror in far:
      far[mirror] = -1
    cheapest = sorted(far, key=lambda path: (far[path], seconds.get(path, 1e9), path))
    near = [path for path in cheapest if far[path] <= nearest]
    return {"first": near[:1], "nearest": near[1:], "further": [path for path in cheapest if far[path] == nearest + 1]}

  def _distance(self, test: str, module: str) -> float:
    """Number of modules between a test and a module; 0 for a direct import."""
    seen, level, steps = {test}, self._through({test}), 0
    while level - seen:
      if module in level:
        return steps
      seen, steps = seen | level, steps + 1
      level = self._through(set().union(*(self._imported(name).values() for name in level)))
    return float("inf")

  def _through(self, modules: set[str]) -> set[str]:
    """The modules, and what is imported by those that only pass names on: support modules of tests, and packages."""
    waiting, found = list(modules), set(modules)
    while waiting:
      module = waiting.pop()
      if module.startswith("tests.") or self._files[module].name == "__init__.py":
        new = set(self._imported(module).values()) - found
        found |= new
        waiting += new
    return found

  def _imported(self, module: str) -> dict[str, str]:
    """The tree's modules that a module imports, by the name that it gives to each or to something of it."""
    if module not in self._found:
      self._found[module] = found = {}
      for node in ast.walk(ast.parse((self._root / self._files[module]).read_text(encoding="utf-8"))):
        for alias in node.names if isinstance(node, ast.Import | ast.ImportFrom) else ():
          base = getattr(node, "module", None)
          whole = f"{base}.{alias.name}" if base else alias.name
          if whole in self._files:
            found[alias.asname or alias.name] = whole
          elif base in self._files:
            package = self._files[base].name == "__init__.py"
            found[alias.asname or alias.name] = self._imported(base).get(alias.name, base) if package else base
    return self._found[module]


class Copy:
  """A private copy of the tree, in which one job runs pytest."""

  def __init__(self, root: pathlib.Path, folder: pathlib.Path):
    """Copies the tree into `folder`, and links to the user's cached models."""
    self.tree, self._cache = folder / "tree", folder / "cache"
    shutil.copytree(root, self.tree, ignore=LEFT_OUT)
    self._cache.mkdir()
    users = pathlib.Path(os.environ.get("QEMPO_CACHE_DIR") or "~/.cache/qempo_jax").expanduser()
    for entry in [entry for entry in (users.iterdir() if users.is_dir() else ()) if entry.name not in STALE]:
      (self._cache / entry.name).symlink_to(entry.absolute())
    self._env = {"JAX_COMPILATION_CACHE_DIR": str(HERE / ".jax_cache")} | os.environ | {
      "PYTHONPATH": str(self.tree), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "1000", "QEMPO_CACHE_DIR": str(self._cache),
      "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }  # fmt: skip

  def judge(self, mutant: mutants.Mutant, stages: dict[str, list[str]], skipped: list[str], limit: float) -> dict:
    """Plants one fault, runs each stage of its tests until one fails, and takes the fault out again."""
    path, started, outcomes, failed = self.tree / mutant.file, time.monotonic(), {}, []
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
      for stage, tests in stages.items():
        if tests and set(outcomes.values()) <= {"survived"}:
          failed, code = self.pytest(*tests, "-x", *(f"--deselect={name}" for name in skipped), limit=limit)
          outcome = "timeout" if code is None else "survived" if code in (0, 1, 5) else "crashed"
          outcomes[stage] = "caught" if failed else outcome
    finally:
      path.write_text(text, encoding="utf-8")
    near = [outcome for stage, outcome in outcomes.items() if stage != "further" and outcome != "survived"]
    status = "caught" if failed else near[0] if near else "survived"
    found = {"file": mutant.file, "wrong": mutant.wrong, "status": status, "caught": bool(failed), "stages": outcomes}
    return found | {"test": failed[0] if failed else None, "seconds": round(time.monotonic() - started, 1)}

  def pytest(self, *arguments: str, limit: float | None = None) -> tuple[list[str], int | None]:
    """Runs default tests once: (names of the failed tests, exit code; None after a timeout)."""
    for name in STALE:
      shutil.rmtree(self._cache / name, ignore_errors=True)
    command = [
      sys.executable,
      "-m",
      "pytest",
      "-m",
      "not slow",
      "-q",
      "-p",
      "no:cacheprovider",
      "-rfE",
      "--tb=no",
      *arguments,
    ]
    last = time.monotonic() + 20 * (limit or 0)  # one that sleeps takes no CPU
    with tempfile.TemporaryFile("w+") as log:
      process = subprocess.Popen(command, cwd=self.tree, env=self._env, stdout=log, stderr=log, start_new_session=True)
      try:
        while process.poll() is None and (
          limit is None or _cpu_seconds(process.pid) < limit and time.monotonic() < last
        ):
          time.sleep(0.5)
        code = process.returncode
      finally:
        if process.poll() is None:
          os.killpg(process.pid, signal.SIGKILL)
          process.wait()
      log.seek(0)
      return _FAILED.findall(log.read()) if code is not None else [], code


def _cpu_seconds(leader: int) -> float:
  """CPU seconds of the processes that a first one has started, itself included: a busy machine adds none."""
  total = 0
  for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
    try:
      fields = stat.read_text().rpartition(")")[2].split()
    except OSError:  # ended meanwhile
      continue
    total += sum(map(int, fields[11:15])) if int(fields[3]) == leader else 0
  return total / os.sysconf("SC_CLK_TCK")


def save(path: pathlib.Path, results: dict) -> None:
  """Writes the results whole, with their summary."""
  every = results["mutants"]
  counts = collections.Counter(found["status"] for found in every.values())
  results["summary"] = {"count": len(every), **counts, "share": round(counts["caught"] / max(len(every), 1), 4)}
  results["summary"]["missed"] = [name for name, found in every.items() if not found["caught"]]
  scratch = path.with_suffix(".partial")
  scratch.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
  scratch.replace(path)


def main() -> None:
  """Runs the mutants that have no result yet."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--out", type=pathlib.Path, required=True, help="JSON file of results")
  parser.add_argument("--only", nargs="+", metavar="NAME", help="mutants to run; all by default")
  parser.add_argument("--again", action="store_true", help="run mutants anew that have a result")
  parser.add_argument("--jobs", type=int, default=2, help="mutants at once, each in a copy of the tree")
  parser.add_argument("--root", type=pathlib.Path, default=HERE, help="tree whose sources and tests are used")
  parser.add_argument(
    "--limit", type=float, default=240, help="CPU seconds of one run of pytest; a longer one catches nothing"
  )
  parser.add_argument("--durations", type=pathlib.Path, help="JSON of CPU seconds by test, for the order of files")
  options, seconds = parser.parse_args(), collections.Counter()
  chosen = [mutant for mutant in mutants.MUTANTS if not options.only or mutant.name in options.only]
  for mutant in chosen:
    text = (options.root / mutant.file).read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
      sys.exit(f"{mutant.name}: its text occurs {text.count(mutant.old)} times in {mutant.file}, not once")
    compile(text.replace(mutant.old, mutant.new), mutant.file, "exec")
  for name, spent in json.loads(options.durations.read_text()).items() if options.durations else ():
    seconds[name.partition("::")[0]] += spent
  results = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
  results = {"commit": "", "summary": {}, "mutants": {}, "sound": [], "unsound": []} | results
  commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=options.root, capture_output=True, text=True, check=False)
  results["commit"], imports, lock = commit.stdout.strip(), Imports(options.root), threading.Lock()
  copies = queue.SimpleQueue()
  todo = [mutant for mutant in chosen if options.again or mutant.name not in results["mutants"]]

  def work(mutant):
    copy = copies.get()
    with lock:
      stages = imports.stages(mutant.file, seconds)
    found = copy.judge(mutant, stages, results["unsound"], options.limit)
    copies.put(copy)
    with lock:
      results["mutants"][mutant.name] = found
      save(options.out, results)
    print(
      f"{len(results['mutants'])} {mutant.name}: {found['status']}, {found['seconds']:.0f} s, {found['test']}",
      flush=True,
    )

  with tempfile.TemporaryDirectory(prefix="mutants-") as scratch, futures.ThreadPoolExecutor(options.jobs) as pool:
    for job in range(options.jobs):
      copies.put(Copy(options.root, pathlib.Path(scratch) / str(job)))
    while todo:
      list(pool.map(work, todo))
      new = sorted({found["test"] for found in results["mutants"].values() if found["caught"]} - set(results["sound"]))
      copies.put(copy := copies.get())
      failed = copy.pytest(*new)[0] if new else []
      results["sound"] += [test for test in new if test not in failed]
      results["unsound"] += failed
      todo = [mutant for mutant in mutants.MUTANTS if results["mutants"].get(mutant.name, {}).get("test") in failed]
      results["mutants"] = {name: found for name, found in results["mutants"].items() if found["test"] not in failed}
      save(options.out, results)
  print(json.dumps(results["summary"], indent=1))


if __name__ == "__main__":
  main()
