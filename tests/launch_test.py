"""Joining processes under SLURM, and slices by their product names."""

import jax
import pytest

from experiments.compile import chips
from experiments.run import distributed
from qempo_jax.errors import InputError


@pytest.fixture
def joined(monkeypatch):
  found = {}
  monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: False)
  monkeypatch.setattr(jax.distributed, "initialize", lambda **options: found.update(options))
  return found


@pytest.mark.parametrize(
  ("tasks", "expected"), [("1(x2)", [0, 1, 2, 3, 4, 5, 6, 7]), ("1", list(range(8))), ("8(x2)", None)]
)
def test_one_process_a_node_takes_all_gpus_of_the_node(tasks, expected, joined, monkeypatch):
  monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", tasks)
  monkeypatch.setenv("SLURM_GPUS_ON_NODE", "8")
  distributed.start()
  assert joined.get("local_device_ids") == expected


def test_elsewhere_jax_chooses_the_devices(joined, monkeypatch):
  monkeypatch.delenv("SLURM_STEP_TASKS_PER_NODE", raising=False)
  distributed.start()
  assert "local_device_ids" not in joined


@pytest.mark.parametrize(
  ("name", "shape"),
  [
    ("v5p-64", "v5p:2x4x4"),
    ("v5p-32", "v5p:2x2x4"),
    ("v5litepod-16", "v5e:4x4"),
    ("v6e-8", "v6e:2x4"),
    ("v5p:2x2x1", "v5p:2x2x1"),
    ("h100:8", "h100:8"),
  ],
)
def test_slices_have_product_names(name, shape):
  assert chips.topology_of(name) == shape and chips.chip_of(name) == chips.chip_of(shape)


@pytest.mark.parametrize("name", ["v5p-63", "v4-8", "h100", "h100:many", "v5p", "h100:0"])
def test_an_unknown_slice_is_refused_with_what_there_is(name):
  with pytest.raises(InputError, match="v5p-64"):
    chips.topology_of(name)


def test_a_product_name_has_its_number_of_chips():
  for kind, shapes in chips._SHAPES.items():
    for count, shape in shapes.items():
      size = 1
      for side in shape.split("x"):
        size *= int(side)
      assert size == count, (kind, shape)
