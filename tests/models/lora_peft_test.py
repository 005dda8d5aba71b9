"""Adapters in peft's format: read from what peft wrote, and read by peft from what is written here."""

import functools
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax.errors import InputError
from qempo_jax.models import conversion
from qempo_jax.models import lora
from qempo_jax.models import lora_peft
from qempo_jax.models import transformer

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
_HERE = sys.executable if all(importlib.util.find_spec(name) for name in ("torch", "peft")) else None
PYTHON = os.environ.get("QEMPO_PARITY_PYTHON", _HERE)
FAMILIES = {"llama": 7, "qwen2": 3}  # and how many matrices their adapters change


def _load(family):
  config, base = conversion.load(GOLDEN / "peft" / family / "base")
  return config, jax.tree.map(jnp.asarray, base), np.load(GOLDEN / "peft" / family / "logits.npz")


@functools.partial(jax.jit, static_argnums=1)
def _logits(params, config, tokens):
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  mask = transformer.causal_mask(positions, jnp.ones_like(tokens, bool))
  hidden = transformer.forward(params, config, jnp.asarray(tokens), positions, mask, remat=False)
  return transformer.logits(hidden, transformer.unembedding(params), config)


def _moved(adapters):
  return jax.tree.map(lambda leaf: leaf[::-1] * 1.5 + 0.01, adapters)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_written_by_peft_give_its_logits(family):
  config, base, golden = _load(family)
  adapters = lora_peft.read(GOLDEN / "peft" / family / "adapter", config)
  assert len(adapters["layers"]) == FAMILIES[family]
  for params in (lora.apply(base, adapters), lora.merge(base, adapters)):
    np.testing.assert_allclose(_logits(params, config, golden["tokens"]), golden["logits"], atol=1e-4)
  assert np.abs(_logits(base, config, golden["tokens"]) - golden["logits"]).max() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_written_adapters_read_back(tmp_path, family):
  config, _, _ = _load(family)
  theirs = GOLDEN / "peft" / family / "adapter"
  adapters = lora_peft.read(theirs, config)
  lora_peft.write(tmp_path, adapters, config, base_model=None)
  again = lora_peft.read(tmp_path, config)
  jax.tree.map(np.testing.assert_array_equal, again, adapters)
  # The same tensors under the same names, and the same of every option that we write.
  assert (
    lora_peft._read_tensors(tmp_path / lora_peft.WEIGHTS_FILE).keys()
    == lora_peft._read_tensors(theirs / lora_peft.WEIGHTS_FILE).keys()
  )
  ours, peft = (json.loads((folder / lora_peft.CONFIG_FILE).read_text()) for folder in (tmp_path, theirs))
  peft["target_modules"] = sorted(peft["target_modules"])
  assert ours == {key: peft[key] for key in ours}


@pytest.mark.slow  # `written adapters read back` holds names, shapes and options to what peft wrote
@pytest.mark.skipif(PYTHON is None, reason="needs torch and peft, here or in the Python of QEMPO_PARITY_PYTHON")
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_reads_what_is_written_here(tmp_path, family):
  config, base, golden = _load(family)
  adapters = _moved(lora_peft.read(GOLDEN / "peft" / family / "adapter", config))
  lora_peft.write(tmp_path, adapters, config, base_model=None)
  program = [PYTHON, str(GOLDEN / "make_peft_golden.py")]
  arguments = [str(GOLDEN / "peft" / family / "base"), str(tmp_path), str(tmp_path / "logits.npz")]
  subprocess.run([*program, *arguments], check=True, capture_output=True)
  ours = _logits(lora.apply(base, adapters), config, golden["tokens"])
  theirs = np.load(tmp_path / "logits.npz")["logits"]
  assert np.abs(theirs - golden["logits"]).max() > 0.1  # other adapters than the golden ones
  np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.slow  # live
@pytest.mark.skipif(_HERE is None, reason="needs torch and peft")
@pytest.mark.parametrize("targets", [lora.ALL_MATRICES, "layers/query$", "layers/shared_up"])
def test_peft_reads_adapters_of_some_kinds_of_blocks(tmp_path, targets):
  import peft
  import torch
  import transformers

  folder = GOLDEN / "families" / "gemma4_shared"
  config, base = conversion.load(folder)
  base = jax.tree.map(jnp.asarray, base)
  adapters = _moved(lora.init(jax.random.key(0), base, lora.LoraConfig(2, 4.0, targets)))
  lora_peft.write(tmp_path, adapters, config, base_model=None)
  jax.tree.map(np.testing.assert_array_equal, lora_peft.read(tmp_path, config), adapters)
  tokens = np.random.default_rng(0).integers(3, 64, (2, 9))
  model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
  adapted = peft.PeftModel.from_pretrained(model, tmp_path).eval()
  assert sum("lora_A" in name for name, _ in adapted.named_parameters()) == sum(
    len(adapter.a) for adapter in adapters["layers"].values()
  )
  with torch.no_grad():
    theirs = adapted(input_ids=torch.tensor(tokens), use_cache=False).logits
  np.testing.assert_allclose(_logits(lora.apply(base, adapters), config, tokens), theirs, atol=2e-4)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"peft_type": "IA3"}, "peft_type='IA3'"),
    ({"use_dora": True}, "use_dora=True is not supported"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"bias": "lora_only"}, "bias='lora_only' is not supported.*it must be 'none'"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' is not supported"),
    ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights='pissa_niter_16'"),
    ({"init_lora_weights": "OLoRA"}, "init_lora_weights='OLoRA'"),
    ({"init_lora_weights": "corda", "corda_config": {"corda_method": "kpm"}}, "corda_config={'corda_method'"),
    ({"init_lora_weights": "eva"}, "init_lora_weights='eva'"),
    ({"alora_invocation_tokens": [9, 10]}, "alora_invocation_tokens=.9, 10. is not supported"),
    ({"use_qalora": True}, "use_qalora=True"),
    ({"trainable_token_indices": [3]}, "trainable_token_indices"),
    ({"an_option_of_next_year": 0.5}, "an_option_of_next_year=0.5 is not supported"),
    ({"r": 0}, "r=0 must be a positive whole number"),
    ({"r": 2.0}, "r=2.0 must be a positive whole number"),
    ({"lora_alpha": float("nan")}, "lora_alpha=nan must be a positive number"),
    ({"lora_alpha": True}, "lora_alpha=True must be a positive number"),
    ({"use_rslora": "false"}, "use_rslora='false' must be true or false"),
    ({"r": 3}, "does not fit"),
  ],
)
def test_options_that_change_the_result_are_refused(tmp_path, changes, message):
  config, _, _ = _load("qwen2")
  shutil.copytree(GOLDEN / "peft" / "qwen2" / "adapter", tmp_path / "a")
  path = tmp_path / "a" / lora_peft.CONFIG_FILE
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))
  with pytest.raises(InputError, match=message):
    lora_peft.read(tmp_path / "a", config)


@pytest.mark.parametrize("initial", [True, False, None, "gaussian"])
def test_what_leaves_the_computation_alone_passes(tmp_path, initial):
  config, _, _ = _load("qwen2")
  shutil.copytree(GOLDEN / "peft" / "qwen2" / "adapter", tmp_path / "a")
  path = tmp_path / "a" / lora_peft.CONFIG_FILE
  harmless = {
    "init_lora_weights": initial,
    "lora_dropout": 0.1,
    "task_type": None,
    "exclude_modules": ["lm_head"],
    "of_next_year": [],
  }
  path.write_text(json.dumps(json.loads(path.read_text()) | harmless))
  assert lora_peft.read(tmp_path / "a", config)["layers"]


@pytest.mark.slow
@pytest.mark.skipif(_HERE is None, reason="needs torch and peft")
@pytest.mark.parametrize(
    "options",
    [{}, {"init_lora_weights": "gaussian"}, {"init_lora_weights": False}, {"use_rslora": True}, {"init_lora_weights": "pissa"},
     {"init_lora_weights": "olora"}, {"init_lora_weights": "orthogonal"}, {"alora_invocation_tokens": [9, 10]}, {"use_dora": True}],
    ids=str,
)  # fmt: skip
def test_adapters_are_refused_or_give_pefts_logits(tmp_path, options):
  """Each as peft saves it and loads it again; those that are read here give its logits."""
  import peft
  import torch
  import transformers

  torch.manual_seed(0)
  config, base, golden = _load("qwen2")
  load = lambda: transformers.AutoModelForCausalLM.from_pretrained(
    GOLDEN / "peft" / "qwen2" / "base", dtype=torch.float32
  )
  settings = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **options)
  adapted = peft.get_peft_model(load(), settings)
  for name, value in adapted.named_parameters():
    if "lora_" in name:
      torch.nn.init.normal_(value, std=0.3)
  adapted.save_pretrained(tmp_path)
  try:
    adapters = lora_peft.read(tmp_path, config)
  except InputError as error:
    assert next(iter(options)) in str(error) and options != {}
    return
  with torch.no_grad():
    theirs = peft.PeftModel.from_pretrained(load(), tmp_path)(torch.tensor(golden["tokens"]).long()).logits.numpy()
  np.testing.assert_allclose(_logits(lora.merge(base, adapters), config, golden["tokens"]), theirs, atol=1e-4)
  assert options in ({}, {"init_lora_weights": "gaussian"}, {"init_lora_weights": False}, {"use_rslora": True})


@pytest.mark.parametrize("name", ["phi3", "olmoe", "gpt_oss"])
def test_adapters_without_a_module_in_peft_are_refused(tmp_path, name):
  config, base = conversion.load(GOLDEN / "families" / name)
  adapters = lora.init(jax.random.key(0), base, lora.LoraConfig(2, 4.0, "layers/(up|expert_up)"))
  with pytest.raises(InputError, match="no adapters of single experts or of parts of a fused projection.*_?up of this"):
    lora_peft.write(tmp_path, adapters, config, base_model=None)


def test_missing_damaged_and_foreign_files_are_said(tmp_path):
  config, _, _ = _load("qwen2")
  with pytest.raises(InputError, match="adapter_config.json cannot be read"):
    lora_peft.read(tmp_path, config)
  shutil.copytree(GOLDEN / "peft" / "qwen2" / "adapter", tmp_path / "a")
  weights = tmp_path / "a" / lora_peft.WEIGHTS_FILE
  weights.write_bytes(weights.read_bytes()[:100])
  with pytest.raises(InputError, match="damaged or cut short"):
    lora_peft.read(tmp_path / "a", config)
  other, _, _ = _load("llama")
  shutil.copytree(GOLDEN / "peft" / "qwen2" / "adapter", tmp_path / "b")
  shallow = type(other)(**{**vars(config), "num_layers": 1})
  with pytest.raises(InputError, match="has no matrix for"):
    lora_peft.read(tmp_path / "b", shallow)
