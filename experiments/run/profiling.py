"""A few steps of a run under JAX's profiler."""

from collections.abc import Callable
from collections.abc import Iterator
import pathlib
from typing import NamedTuple

import jax

FOLDER = "profile"


class Profiling(NamedTuple):
  """Settings: `steps` updates are recorded, 0 for none, after `after` others of this process, which compile."""

  steps: int
  after: int


def traced(steps: range, settings: Profiling, workdir: pathlib.Path, note: Callable[[str], None]) -> Iterator[int]:
  """The steps of a loop, each named in a profile; those that the settings ask for are recorded in `workdir/profile`.

  `logging.profile_after` steps of this process go first, which compile. Every process writes a file of its own, for
  TensorBoard's profile page, XProf or Perfetto. A loop that ends in between, in an error too, leaves what was recorded.

  Args:
    steps: of the run, from where it resumes.
    settings: of the profile.
    workdir: the run's folder.
    note: gets a line once the profile is written, or where too few steps are left for one.

  Yields:
    Every step.
  """
  first, count = settings.after, settings.steps
  chosen = steps[first : first + count]
  if count and not chosen:
    note(f"no step is profiled: {len(steps)} are left, and logging.profile_after={first} go first")
  recording = False
  try:
    for step in steps:
      if chosen and step == chosen[0]:
        jax.profiler.start_trace(workdir / FOLDER)
        recording = True
      with jax.profiler.StepTraceAnnotation("step", step_num=step + 1):
        yield step
      if chosen and step == chosen[-1]:
        recording = False
        jax.profiler.stop_trace()
        note(f"steps {chosen[0] + 1} to {chosen[-1] + 1} are profiled in {workdir / FOLDER}")
  finally:
    if recording:
      jax.profiler.stop_trace()
