"""Live against PyTorch transformers, where it is installed: read here, exported here, loaded there; same logits."""

import dataclasses
import importlib.util
import json
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax import packing
from qempo_jax.errors import InputError
from qempo_jax.models import conversion
from qempo_jax.models import experts
from qempo_jax.models import export
from qempo_jax.models import export_tensors
from qempo_jax.models import mxfp4
from qempo_jax.models import shared_prompt
from qempo_jax.models import transformer
from qempo_jax.models import verify_export

pytestmark = pytest.mark.skipif(
  importlib.util.find_spec("torch") is None, reason="PyTorch is not installed; its logits are kept in golden/families"
)
GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
FAMILIES = sorted(path.name for path in (GOLDEN / "families").iterdir() if path.is_dir())
TOLERANCE = 1e-4
SEED = 11  # other weights and tokens than the golden files'


@pytest.fixture(scope="module")
def goldens():
  """The script that made the golden files."""
  spec = importlib.util.spec_from_file_location("make_family_goldens", GOLDEN / "make_family_goldens.py")
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module
  spec.loader.exec_module(module)
  return module


def _written(goldens, name, folder):
  """A fresh random checkpoint of a family, written by transformers and loaded there again in float32."""
  import torch
  import transformers

  goldens.write(name, folder, seed=SEED)
  model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
  return model.eval()


def _rows(goldens):
  rng = np.random.default_rng(SEED)
  rows = [rng.integers(3, goldens.SIZES["vocab_size"], length).tolist() for length in goldens.LENGTHS]
  rows[1][: goldens.PROMPT_LENGTHS[1]] = rows[0][: goldens.PROMPT_LENGTHS[0]]
  return rows


def _padded(rows, side):
  width = max(map(len, rows))
  tokens, valid = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), bool)
  for index, row in enumerate(rows):
    place = slice(0, len(row)) if side == "right" else slice(width - len(row), None)
    tokens[index, place], valid[index, place] = row, True
  return tokens, valid


def _packed_logits(params, config, rows, prompt_lengths):
  """Logits of every row's tokens but the last, computed with the first two rows behind one shared prompt."""
  (prompt, first), (_, second), (other, third) = [(row[:n], row[n:]) for row, n in zip(rows, prompt_lengths)]
  arrays = lambda lists: [np.asarray(x, np.int32) for x in lists]
  packed = packing.pack_groups(arrays([prompt, other]), [arrays([first, second]), arrays([third, []])], bucket=8)
  mask = shared_prompt.mask_of_rows(packed.positions, packed.segments, packed.layout.responses)
  config = dataclasses.replace(config, max_length=max(map(len, rows)))  # as a run's config is
  hidden = transformer.forward(params, config, packed.tokens, packed.positions, mask, remat=False)
  logits = np.asarray(transformer.logits(hidden, transformer.unembedding(params), config))
  places = [(0, 1), (0, 2), (1, 1)]
  return [logits[row][np.isin(packed.segments[row], [0, segment])] for row, segment in places]


@pytest.mark.slow  # live; the golden logits in `families_test` and the bytes in `export_test` stand in for it
@pytest.mark.parametrize("name", FAMILIES)
def test_the_way_in_and_the_way_back(goldens, name, tmp_path):
  model = _written(goldens, name, tmp_path / "theirs")
  config, params = conversion.load(tmp_path / "theirs")
  params = jax.tree.map(jnp.asarray, params)
  rows = _rows(goldens)
  theirs = {side: goldens.logits_of(model, rows, side) for side in ("left", "right")}
  for side, expected in theirs.items():
    ours = verify_export.jax_logits(params, config, *_padded(rows, side))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=TOLERANCE, err_msg=side)
  for ours, expected in zip(
    _packed_logits(params, config, rows, goldens.PROMPT_LENGTHS),
    np.split(theirs["right"], np.cumsum(goldens.LENGTHS)[:-1]),
  ):
    np.testing.assert_allclose(ours, expected[:-1], rtol=0, atol=TOLERANCE)

  # With the configuration that the checkpoint came with, and with one described from the decoder's shape alone.
  for source in (tmp_path / "theirs", None):
    target = tmp_path / f"ours-{source is None}"
    export.export_model(target, params, config, source=source, dtype="float32", max_shard_bytes=9_000)
    assert len(list(target.glob("*.safetensors"))) > 1
    found = verify_export.verify_export(target, params, config, dtype="float32", tolerance=TOLERANCE)
    assert found.max_difference <= TOLERANCE
    again = _load(target)
    written, original = again.state_dict(), model.state_dict()
    assert list(written) == list(original)
    for tensor in original:
      np.testing.assert_array_equal(written[tensor], original[tensor])
    for side, expected in theirs.items():  # Sums differ in their order by where tensors lie in memory.
      np.testing.assert_allclose(goldens.logits_of(again, rows, side), expected, rtol=0, atol=2e-6)


@pytest.mark.slow  # live
@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_of_packed_rows_equal_pytorchs(goldens, name, tmp_path):
  """Of a response's log-prob behind its prompt, for every parameter, relative to the largest number of its gradient."""
  import torch

  model, row, start = _written(goldens, name, tmp_path / "theirs"), _rows(goldens)[1], goldens.PROMPT_LENGTHS[1]
  config, params = conversion.load(tmp_path / "theirs")
  config = dataclasses.replace(config, max_length=len(row))
  packed = packing.pack_groups([row[:start]], [[row[start:]]], bucket=8)

  def log_prob(params):
    hidden, _ = transformer.forward_groups(params, config, packed)
    log_probs = jax.nn.log_softmax(transformer.logits(hidden, transformer.unembedding(params), config))
    return jnp.sum(log_probs[0, packed.source[0], packed.target[0]] * (packed.sample[0] < 1))

  value, gradient = jax.jit(jax.value_and_grad(log_prob))(jax.tree.map(jnp.asarray, params))
  tokens = torch.tensor([row])
  logits = model(input_ids=tokens, use_cache=False).logits
  theirs = torch.log_softmax(logits, -1)[0, start - 1 : -1].gather(1, tokens[0, start:, None]).sum()
  theirs.backward()
  np.testing.assert_allclose(value, theirs.item(), rtol=1e-5)
  ours = dict(export_tensors.to_hugging_face_names(jax.device_get(gradient), config))
  compared = {tensor: p.grad for tensor, p in model.named_parameters() if tensor in ours}
  # PyTorch holds some families' experts in one tensor, and names it otherwise than in a file.
  assert not [
    tensor for tensor in ours if tensor not in compared and not re.search("experts|moe|lm_head|layer_scalar", tensor)
  ]
  for tensor, grad in compared.items():
    np.testing.assert_allclose(ours[tensor], grad, rtol=0, atol=2e-4 * float(grad.abs().max()), err_msg=tensor)


def _load(folder):
  import torch
  import transformers

  model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
  return model.eval()


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_half_precision_exports_are_verified_as_they_were_rounded(dtype, tmp_path):
  config, params = conversion.load(GOLDEN / "families" / "llama2")
  config = dataclasses.replace(config, num_tokens=60)  # padded columns are written, and compared, too
  export.export_model(tmp_path / "out", params, config, dtype=dtype)
  found = verify_export.verify_export(tmp_path / "out", params, config, dtype=dtype, tolerance=TOLERANCE)
  assert found.max_difference <= TOLERANCE and "verified with PyTorch" in found.message
  with pytest.raises(InputError, match="does not compute the exported model"):
    verify_export.verify_export(tmp_path / "out", params, config, dtype="float32", tolerance=TOLERANCE)


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (lambda p, c: (p | {"final_norm": 1.1 * p["final_norm"]}, c), "logits differ by"),
    (lambda p, c: (p, dataclasses.replace(c, rope_theta=77.0)), "logits differ by"),
  ],
)
def test_a_wrong_export_is_found(tmp_path, damage, message):
  config, params = conversion.load(GOLDEN / "families" / "llama2")
  export.export_model(tmp_path / "out", *damage(params, config))
  with pytest.raises(InputError, match=message):
    verify_export.verify_export(tmp_path / "out", params, config, dtype="float32", tolerance=TOLERANCE)


def test_what_transformers_does_not_load_whole_is_found(tmp_path):
  config, params = conversion.load(GOLDEN / "families" / "llama2")
  out = export.export_model(tmp_path / "out", params, config)
  written = json.loads((out / "config.json").read_text())
  (out / "config.json").write_text(json.dumps(written | {"attention_bias": True}))
  with pytest.raises(InputError, match="loads .* with .*missing"):
    verify_export.verify_export(out, params, config, dtype="float32", tolerance=TOLERANCE)


def test_mxfp4_is_dequantised_as_transformers_does():
  import torch
  from transformers.integrations import mxfp4 as theirs

  rng = np.random.default_rng(0)
  blocks = rng.integers(0, 256, (3, 8, 2, 16)).astype(np.uint8)
  scales = rng.integers(0, 250, (3, 8, 2)).astype(np.uint8)  # to the ends of bfloat16's range
  expected = theirs.convert_moe_packed_tensors(torch.tensor(blocks), torch.tensor(scales), dtype=torch.float32)
  ours = mxfp4.dequantise(blocks, scales)
  assert ours.shape == (3, 64, 8)
  np.testing.assert_array_equal(ours.astype(np.float32), expected)


def test_the_routers_loss_is_that_of_transformers():
  import torch
  from transformers.models.mixtral import modeling_mixtral

  rng = np.random.default_rng(0)
  logits, valid = rng.normal(size=(3, 2, 7, 5)).astype(np.float32), np.arange(7) >= [[3], [0]]
  by_block = tuple(torch.tensor(block.reshape(-1, 5)) for block in logits)
  for mask in (valid, np.ones_like(valid)):
    theirs = modeling_mixtral.load_balancing_loss_func(by_block, 5, 2, torch.tensor(mask).long())
    np.testing.assert_allclose(experts.balancing_loss(logits, mask, 2), theirs, rtol=1e-5)
