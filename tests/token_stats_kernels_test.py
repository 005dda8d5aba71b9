"""The kernels that sum over the vocabulary, step by step on the CPU, against XLA's blocks and against the whole logits."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax import sharding
from qempo_jax import token_stats
from qempo_jax.errors import InputError
from qempo_jax.kernels import choice
from qempo_jax.kernels import gpu
from qempo_jax.kernels import tpu
from qempo_jax.kernels.head import Head

TOKENS, WIDTH, VOCAB = 20, 24, 200
FORBIDDEN = (0, 31, 64, 152, 153, 169, 180)  # at edges of tiles and of the vocabulary, and beyond `num_tokens`
COLLECTIVE = re.compile(
  r"= \(?f32\[([\d,]*)\].* (all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)\("
)


@pytest.fixture
def small_tiles(monkeypatch):
  """Several tiles each way, the last of them partly empty."""
  for name, size in (("TOKENS", (16,)), ("COLUMNS", (64,))):
    monkeypatch.setattr(tpu, name, size)
  for name, size in (("TOKENS", 16), ("COLUMNS", 32), ("WIDTH", 16), ("PROGRAMS", 6)):
    monkeypatch.setattr(gpu, name, size)


def problem(vocab_size=VOCAB, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(1), 3)
  hidden = jax.random.normal(keys[0], (TOKENS, WIDTH))
  unembedding = jax.random.normal(keys[1], (vocab_size, WIDTH)).astype(dtype)
  allowed = np.setdiff1d(np.arange(150), FORBIDDEN)
  return hidden, unembedding, jnp.asarray(allowed)[jax.random.randint(keys[2], (TOKENS,), 0, len(allowed))]


def stats(
  kernel, hidden, unembedding, targets, temperature=0.7, *, dtype="float32", softcap=None, num_tokens=None, forbidden=()
):
  head = Head(dtype, softcap, num_tokens, 5, 64, kernel, interpret=True, forbidden=forbidden)
  return token_stats._token_stats(head, hidden, unembedding, targets, jnp.float32(temperature))


def weighted(found):
  places = jnp.arange(TOKENS)
  return jnp.sum(jnp.sin(places) * found.log_prob + jnp.cos(places) * found.entropy)


@pytest.mark.parametrize(
  ("kernel", "options"),
  [
    ("tpu", {"softcap": 3.0, "num_tokens": 170, "forbidden": FORBIDDEN}),
    ("gpu", {"softcap": 3.0, "num_tokens": 170, "forbidden": FORBIDDEN}),
    pytest.param("tpu", {"dtype": "bfloat16", "num_tokens": 151}, marks=pytest.mark.slow),
    pytest.param("gpu", {"dtype": "bfloat16", "num_tokens": 151}, marks=pytest.mark.slow),
  ],
  ids=str,
)
def test_kernels_equal_xla(kernel, options, small_tiles):
  arrays = problem(dtype=jnp.dtype(options.get("dtype", "float32")))
  of = lambda name: lambda h, w: stats(name, h, w, arrays[2], **options)
  both = lambda name: jax.jit(lambda h, w: (of(name)(h, w), jax.grad(lambda *a: weighted(of(name)(*a)), (0, 1))(h, w)))
  ours, xla = both(kernel)(*arrays[:2]), both("xla")(*arrays[:2])
  near = lambda a, b: np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), rtol=1e-5, atol=1e-5)
  jax.tree.map(near, ours, xla)


@pytest.mark.parametrize("kernel", ["tpu", "gpu"])
def test_kernels_work_under_vmap(kernel, small_tiles):
  hidden, unembedding, targets = problem()
  temperatures = jnp.asarray([0.5, 2.0])
  run = lambda name: jax.jit(jax.vmap(lambda t: stats(name, hidden, unembedding, targets, t)))(temperatures)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), run(kernel), run("xla"))


@pytest.mark.parametrize("kernel", ["xla", "tpu", "gpu"])
def test_a_split_vocabulary_costs_numbers_a_token_and_no_matrix(kernel, small_tiles):
  """Over fsdp a device gathers the columns of its own rows, and scatters their gradient; over tensor, numbers a token."""
  hidden, unembedding, targets = problem(vocab_size=256)
  mesh = sharding.make_mesh((1, 2, 4))
  place = lambda *axes: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
  rows, split = place("fsdp"), place("tensor", "fsdp")

  def scored(name, hidden, unembedding):
    one = functools.partial(stats, name, num_tokens=170, forbidden=FORBIDDEN)
    return sharding.over_rows(lambda w, h, y: one(h, w, y), unembedding, hidden, targets)

  both = lambda name: lambda *a: (scored(name, *a), jax.grad(lambda *b: weighted(scored(name, *b)), (0, 1))(*a))
  placed = jax.device_put((hidden, unembedding), (rows, split))
  program = jax.jit(sharding.on_mesh(both(kernel), mesh), out_shardings=(rows, (rows, split))).lower(*placed).compile()
  near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  jax.tree.map(near, jax.device_get(program(*placed)), jax.device_get(jax.jit(both("xla"))(hidden, unembedding)))
  found = COLLECTIVE.findall(program.as_text())
  big = {(name, shape) for shape, name in found if shape.count(",") and not shape.endswith(",1")}
  of_matrix = {("all-gather", "64,24"), ("reduce-scatter", "64,12"), ("all-reduce", "64,12")}  # over fsdp; over data
  of_tokens = {("all-reduce", "5,24")}  # d hidden, a chunk at a time
  assert ("all-gather", "64,24") in big and len(found) > len(big)
  assert big <= of_matrix | of_tokens


@pytest.mark.parametrize(
  ("kernel", "platform", "kind", "call"),
  [("gpu", "cuda", "NVIDIA H100 80GB HBM3", "triton"), ("tpu", "tpu", "TPU v5e", "tpu_custom_call")],
)
def test_the_kernels_lower_without_their_device(kernel, platform, kind, call):
  """At the sizes of a real head, through JAX's own lowering; only what the device's compiler makes of it is left out."""
  of = lambda *shape, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(shape, dtype)
  head = Head("bfloat16", 30.0, 151_665, 256, 1024, kernel, forbidden=tuple(range(151_643, 151_660)))
  run = jax.jit(lambda h, w, y: token_stats._token_stats(head, h, w, y, jnp.float32(1.0)))
  device = jax.sharding.AbstractDevice(kind, None, "gpu" if kernel == "gpu" else "tpu")  # from 0.12 on, JAX asks which
  with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("x",), abstract_device=device)):
    traced = run.trace(of(300, 896), of(151_936, 896), of(300, dtype=jnp.int32))
    assert call in traced.lower(lowering_platforms=(platform,)).as_text()


def test_auto_takes_what_can_run_and_pallas_says_why_not():
  hidden, unembedding, targets = problem()
  take = lambda asked, platform, h=hidden: choice.chosen(asked, platform, h, unembedding, jnp.float32)
  with jax.sharding.use_abstract_mesh(sharding.make_mesh((1, 1, 8)).abstract_mesh):
    assert [take("auto", platform) for platform in ("tpu", "gpu", "cuda", "cpu")] == ["tpu", "xla", "xla", "xla"]
    assert [take("pallas", platform) for platform in ("tpu", "gpu", "cuda")] == ["tpu", "gpu", "gpu"]
    assert take("xla", "tpu") == "xla"
    wide = jax.ShapeDtypeStruct((8, 2**18), jnp.float32)
    assert take("auto", "tpu", wide) == "xla"
    with pytest.raises(InputError, match="no tile of width 262144 fits"):
      take("pallas", "tpu", wide)
  assert take("auto", "tpu") == "xla"  # eight devices, and no word of how they are arranged
  with pytest.raises(InputError, match="sharding.on_mesh"):
    take("pallas", "tpu")
  with pytest.raises(InputError, match="needs a TPU or an NVIDIA GPU, and this is a cpu; use auto or xla"):
    token_stats.token_stats(hidden, unembedding, targets, temperature=1.0, chunk_size=8, implementation="pallas")
