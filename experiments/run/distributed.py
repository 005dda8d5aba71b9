"""Joining the processes of a run over many machines: first of all, and at most once."""

from collections.abc import Callable
import os
import pickle
import re
from typing import Any

import jax
import numpy as np

from qempo_jax.errors import InputError

LOST_AFTER = 30  # seconds without a sign of life, after which the other processes of a run end too, with an error


def start() -> None:
  """Joins this process to the others of its run, before anything asks JAX for devices.

  TPU slices, SLURM and Open MPI say by themselves who is who; under SLURM with one process a node it takes all of the node's
  GPUs. Elsewhere these variables do: JAX_COORDINATOR_ADDRESS
  (HOST:PORT of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID.

  Raises:
    InputError: the others cannot be found.
  """
  if jax.distributed.is_initialized():
    return
  options: dict[str, Any] = {"heartbeat_timeout_seconds": LOST_AFTER, "shutdown_timeout_seconds": LOST_AFTER}
  if address := os.environ.get("JAX_COORDINATOR_ADDRESS"):
    try:
      count, own = int(os.environ["JAX_NUM_PROCESSES"]), int(os.environ["JAX_PROCESS_ID"])
    except (KeyError, ValueError) as error:
      raise InputError(
        "JAX_COORDINATOR_ADDRESS is set; set JAX_NUM_PROCESSES and JAX_PROCESS_ID to numbers too"
      ) from error
    options |= {"coordinator_address": address, "num_processes": count, "process_id": own}
  elif local := _node_devices():
    options["local_device_ids"] = local
  try:
    jax.distributed.initialize(**options)
  except (RuntimeError, ValueError) as error:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise InputError(
      f"compute.distributed=true, but the other processes cannot be joined ({reason}); set JAX_COORDINATOR_ADDRESS,"
      " JAX_NUM_PROCESSES and JAX_PROCESS_ID, or compute.distributed=false"
    ) from error


def _node_devices() -> list[int]:
  """All GPUs of the node for a SLURM step of one process a node, to which JAX would give one; else none."""
  alone = re.fullmatch(r"1(\(x\d+\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
  count = os.environ.get("SLURM_GPUS_ON_NODE", "")
  return list(range(int(count))) if alone and count.isdigit() else []


def is_writer() -> bool:
  """True in the process that writes logs: the first of all alone."""
  return jax.process_index() == 0


def from_first(make: Callable[[], Any]) -> Any:
  """The result of `make` from the first process, which alone calls it, on all processes; its InputError is raised on all.

  Every process must call this at the same place between its other collective operations, so from its main thread.
  """
  if jax.process_count() == 1:
    return make()
  from jax.experimental import multihost_utils

  value = error = None
  if is_writer():
    try:
      value = make()
    except InputError as caught:
      error = str(caught)
  data = np.frombuffer(pickle.dumps((value, error)), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
  shared = multihost_utils.broadcast_one_to_all(data if is_writer() else np.zeros(size, np.uint8))
  value, error = pickle.loads(np.asarray(shared).tobytes())
  if error is not None:
    raise InputError(error)
  return value
