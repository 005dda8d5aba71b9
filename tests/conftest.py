"""Shared fixtures: eight fake devices, a cheap compiler, double precision on request, and CPU seconds a test."""

import collections
import importlib.metadata
import os
import pathlib
import resource
import zlib

# Eight fake devices share a few cores: one that waits long for the others is slow, not stuck. Without the fusion emitters a program
# compiles in 60 % of the time; XLA stops at a flag it does not know, so that one is set only where it was tried.
os.environ.setdefault(
  "XLA_FLAGS",
  "--xla_force_host_platform_device_count=8 --xla_cpu_collective_call_warn_stuck_timeout_seconds=120"
  " --xla_cpu_collective_call_terminate_timeout_seconds=600"
  + " --xla_cpu_use_fusion_emitters=false"
  * importlib.metadata.version("jaxlib").startswith("0.10."),
)
# A device that waits in a collective keeps a thread: with fewer threads than waiters none would get on.
os.environ.setdefault("PJRT_NPROC", "16")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Every program is kept, however small: the workers of a run share them, and the next run finds them.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import jax
import pytest

# Most tests compile much and compute little, so XLA optimises nothing for them, nor for the programs they start. Tests marked slow in
# these files compute much, or measure memory, and get the compiler that users get.
OPTIMISED = frozenset({
  "colabs_test.py", "exactness_test.py", "estimator_table_test.py", "sampled_duals_test.py", "loops/frontier_test.py", "loops/offline_exact_test.py",
  "loops/online_exact_test.py", "models/placing_test.py", "models/smollm2_generation_test.py", "models/transformer_test.py",
})  # fmt: skip
# A test may take this long, or on a slow machine, on which all tests take longer, this share of the run.
MAX_CPU_SECONDS = 20.0
MAX_SHARE = 0.02
# Files in which one test takes minutes: they start first, or a worker would end with one alone.
LONGEST = ("kill_test.py", "colabs_test.py", "overrides_tried_test.py", "journeys_test.py")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
  """Sets the compiler's effort for one test, the fixtures that it is the first to ask for, and the programs that it starts."""
  name = item.path.relative_to(pathlib.Path(__file__).parent).as_posix()
  effort = "0" if name in OPTIMISED and item.get_closest_marker("slow") else "1"
  if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] != effort:
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = effort
    jax.config.update("jax_disable_most_optimizations", effort == "1")
    jax.clear_caches()


@pytest.fixture
def x64():
  """Runs one test in double precision."""
  with jax.enable_x64(True):
    yield


def pytest_addoption(parser):
  """Adds --part=K/N: one of N parts of the tests, by a hash of their names."""
  parser.addoption("--part", default="0/1", help="K/N: run part K (from 0) of N of the tests")


def pytest_collection_modifyitems(config, items):
  """Keeps the tests of the part in `--part`; the longest files come first, then those of most tests."""
  part, parts = map(int, config.getoption("part").split("/"))
  kept = [item for item in items if zlib.crc32(item.nodeid.encode()) % parts == part]
  config.hook.pytest_deselected(items=[item for item in items if zlib.crc32(item.nodeid.encode()) % parts != part])
  sizes = collections.Counter(item.path for item in kept)
  items[:] = sorted(kept, key=lambda item: (item.path.name not in LONGEST, -sizes[item.path]))


def _cpu_seconds() -> float:
  own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
  return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
  """Starts the clock of a test."""
  item.started = _cpu_seconds()
  yield


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
  """Hands the CPU seconds of each phase to the report, which travels from the workers to the process that prints."""
  report = (yield).get_result()
  now = _cpu_seconds()
  report.user_properties.append(("cpu_seconds", now - item.started))
  report.user_properties.append(("slow", item.get_closest_marker("slow") is not None))
  item.started = now


def _durations(config) -> tuple[dict[str, float], list[str]]:
  """CPU seconds a test, and, in a run without slow tests, the tests over the limit.

  Slow tests share fixtures with others, and the last test of a file is charged for all that its fixtures' programs did.
  """
  seconds, has_slow = {}, False
  for reports in config.pluginmanager.get_plugin("terminalreporter").stats.values():
    for report in reports:
      properties = dict(getattr(report, "user_properties", ()))
      if "cpu_seconds" in properties:
        seconds[report.nodeid] = seconds.get(report.nodeid, 0.0) + properties["cpu_seconds"]
        has_slow |= properties["slow"]
  limit = max(MAX_CPU_SECONDS, MAX_SHARE * sum(seconds.values()))
  return seconds, [name for name, value in seconds.items() if value > limit and not has_slow]


def pytest_terminal_summary(terminalreporter, config):
  """Prints the ten slowest tests, the total, and what is too slow to go unmarked."""
  seconds, too_slow = _durations(config)
  if len(seconds) < 2:
    return
  terminalreporter.section("CPU seconds")
  for name in sorted(seconds, key=seconds.get, reverse=True)[:10]:
    terminalreporter.write_line(f"{seconds[name]:7.1f} {name}")
  terminalreporter.write_line(f"{sum(seconds.values()):7.1f} in {len(seconds)} tests")
  for name in too_slow:
    terminalreporter.write_line(
      f"{name} took {seconds[name]:.0f} CPU seconds: make it faster, or mark it slow", red=True
    )


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
  """A test over the limit that is not marked slow fails the run."""
  if not hasattr(session.config, "workerinput") and exitstatus == 0 and _durations(session.config)[1]:
    session.exitstatus = pytest.ExitCode.TESTS_FAILED
