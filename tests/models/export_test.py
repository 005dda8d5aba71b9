"""Models out: what came in goes out byte by byte, whole or not at all."""

import dataclasses
import json
import os
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest
import tokenizers
import transformers

from qempo_jax import sharding
from qempo_jax.data import tokenization
from qempo_jax.errors import InputError
from qempo_jax.models import conversion
from qempo_jax.models import export
from qempo_jax.models import export_tensors
from qempo_jax.models import hugging_face
from qempo_jax.models import hugging_face_out
from qempo_jax.models import parameters
from qempo_jax.models import safetensors_files
from qempo_jax.models import tensor_names
from qempo_jax.models import verify_export

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "families"
FAMILIES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())
TEMPLATE = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"


def _tensors(folder):
  """Every tensor of a folder: name -> (type, shape, bytes)."""
  where = safetensors_files.stored_tensors(folder)
  return {n: (s.dtype, s.shape, safetensors_files.get(s).tobytes()) for n, s in where.items()}


def _described(folder):
  return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("name", FAMILIES)
def test_what_pytorch_wrote_comes_back_byte_by_byte(name, tmp_path):
  source = GOLDEN / name
  config, params = conversion.load(source)
  described = {key: value for key, value in _described(source).items() if key != "quantization_config"}
  dtype = described["dtype"]
  out = export.export_model(tmp_path / "out", params, config, source=source, dtype=dtype, max_shard_bytes=7_000)
  dequantised = {
    name: ("BF16", *rest) if type_ == "MXFP4" else (type_, *rest) for name, (type_, *rest) in _tensors(source).items()
  }
  assert _tensors(out) == dequantised and "quantization_config" not in _described(out)
  assert described.items() <= _described(out).items()
  index = json.loads((out / safetensors_files.INDEX).read_text())
  assert index["metadata"]["total_size"] == sum(len(raw) for _, _, raw in _tensors(out).values())
  assert len(set(index["weight_map"].values())) > 1
  again, back = conversion.load(out)
  assert again == config
  jax.tree.map(np.testing.assert_array_equal, back, params)


def test_a_configuration_is_described_from_the_shape_alone():
  for name in FAMILIES:
    config = hugging_face.from_hugging_face(_described(GOLDEN / name))
    written = hugging_face_out.to_hugging_face(config)
    assert written["model_type"] == _described(GOLDEN / name)["model_type"], name
    assert written["architectures"] == _described(GOLDEN / name)["architectures"], name
    flat = {key: value for key, value in written.items() if key != "rope_parameters"}  # as transformers 4 reads it
    new = name.startswith(("gemma4", "qwen3_5"))  # which transformers 4 does not know
    for read in map(hugging_face.from_hugging_face, (written, written if new else flat)):
      assert dataclasses.replace(read, query_scale=config.query_scale) == config, name


def test_what_belongs_to_a_run_stands_in_no_description():
  config = hugging_face.from_hugging_face(_described(GOLDEN / "llama2"))
  of_run = dataclasses.replace(
    config, compute_dtype="bfloat16", attention="xla", kv_cache="int8", token_stats="xla", remat="none", num_tokens=20
  )
  assert hugging_face_out.family_of(of_run) == hugging_face_out.family_of(config)


def test_a_changed_shape_is_described_anew():
  source = _described(GOLDEN / "qwen2_windows")
  config = hugging_face.from_hugging_face(source)
  wider = dataclasses.replace(config, vocab_size=72, windows=(None, None, 4))
  written = hugging_face_out.to_hugging_face(wider, source=source | {"auto_map": {"AutoConfig": "own_code.Config"}})
  assert "auto_map" not in written  # its code is not written
  assert hugging_face.from_hugging_face(written) == wider
  assert (written["model_type"], written["bos_token_id"]) == ("qwen2", source["bos_token_id"])


def test_what_no_architecture_computes_is_said():
  config = hugging_face.from_hugging_face(_described(GOLDEN / "llama2"))
  with pytest.raises(InputError, match="no Hugging Face architecture.*computes this decoder"):
    hugging_face_out.to_hugging_face(dataclasses.replace(config, biases=("gate",)))


@pytest.mark.parametrize("mesh", [(2, 2, 2), pytest.param((1, 8, 1), marks=pytest.mark.slow)])
def test_parameters_on_many_devices_go_out_the_same(mesh, tmp_path):
  config, params = conversion.load(GOLDEN / "llama_biases")
  mesh = sharding.make_mesh(mesh)
  spread = jax.device_put(params, sharding.tree_shardings(params, mesh, sharding.PARAM_RULES))
  out = export.export_model(tmp_path / "out", spread, config)
  assert _tensors(out) == _tensors(GOLDEN / "llama_biases")


def test_square_matrices_are_transposed_too(tmp_path):
  config, _ = conversion.load(GOLDEN / "llama2")
  config = dataclasses.replace(config, intermediate_size=config.hidden_size)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda shape: rng.normal(size=shape).astype(np.float32),
    parameters.param_shapes(config),
    is_leaf=lambda x: isinstance(x, tuple),
  )
  named = dict(export_tensors.to_hugging_face_names(params, config))
  up = named["model.layers.1.mlp.up_proj.weight"]
  np.testing.assert_array_equal(up, params["layers"]["up"][1].T)
  _, back = conversion.load(export.export_model(tmp_path / "out", params, config))
  jax.tree.map(np.testing.assert_array_equal, back, params)


def test_bfloat16_parameters_keep_their_own_type():
  config, params = conversion.load(GOLDEN / "qwen2")
  own = jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), params)
  named = dict(export_tensors.to_hugging_face_names(own, config))
  assert list(named) == tensor_names.expected(config)
  assert {tensor.dtype.name for tensor in named.values()} == {"bfloat16"}


def test_shards_hold_what_they_may(tmp_path):
  tensors = [(f"t{n}", np.full(size, n, np.float32)) for n, size in enumerate([2, 2, 2, 9, 1, 1])]
  files = export_tensors.write_safetensors(tmp_path, iter(tensors), max_shard_bytes=16)
  assert files == [f"model-0000{n}-of-00004.safetensors" for n in (1, 2, 3, 4)]
  assert sorted(os.listdir(tmp_path)) == [*files, safetensors_files.INDEX]
  weight_map = json.loads((tmp_path / safetensors_files.INDEX).read_text())["weight_map"]
  assert [int(weight_map[name].split("-")[1]) for name, _ in tensors] == [1, 1, 2, 3, 4, 4]
  (tmp_path / "one").mkdir()
  files = export_tensors.write_safetensors(tmp_path / "one", tensors, max_shard_bytes=10**6, stem="adapter_model")
  assert files == os.listdir(tmp_path / "one") == ["adapter_model.safetensors"]


@pytest.mark.parametrize(
  ("named", "size", "message"),
  [
    ([], 10, "no tensors"),
    ([("a", np.ones(3))] * 2, 10, "'a' came twice"),
    ([("a", np.ones(3))], 0, "max_shard_bytes=0"),
  ],
)
def test_what_makes_no_file_is_refused(tmp_path, named, size, message):
  with pytest.raises(InputError, match=message):
    export_tensors.write_safetensors(tmp_path, named, max_shard_bytes=size)


def test_a_filled_target_is_refused_and_kept(tmp_path):
  config, params = conversion.load(GOLDEN / "llama2")
  out = tmp_path / "out"
  out.mkdir()
  export.export_model(out, params, config)  # an empty one is taken
  before = {path.name: path.read_bytes() for path in out.iterdir()}
  with pytest.raises(InputError, match="out is not empty; name another folder") as caught:
    export.export_model(out, params, config)
  assert "\n" not in str(caught.value)
  assert {path.name: path.read_bytes() for path in out.iterdir()} == before
  with pytest.raises(InputError, match="is a file; name a folder"):
    export.export_model(out / "config.json", params, config)
  assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(
  ("value", "dtype", "message"),
  [
    (np.nan, "float32", "'model.layers.1.mlp.up_proj.weight' holds NaN.*nothing was exported"),
    (1e6, "float16", "'model.layers.1.mlp.up_proj.weight' does not fit into float16"),
    (1.0, "float8", "dtype='float8' is not one of float32, bfloat16, float16"),
  ],
)
def test_a_failed_export_leaves_nothing(tmp_path, value, dtype, message):
  config, params = conversion.load(GOLDEN / "llama2")
  params["layers"]["up"][1, 2, 3] = value
  with pytest.raises(InputError, match=message):
    export.export_model(tmp_path / "out", params, config, dtype=dtype, max_shard_bytes=4_000)
  assert not os.listdir(tmp_path)


def _tokenizer():
  alphabet = ["<pad>", "<s>", "</s>", *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())[:61]]
  inner = tokenizers.Tokenizer(
    tokenizers.models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[])
  )
  inner.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
    [tokenizers.pre_tokenizers.Digits(True), tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)]
  )
  inner.decoder = tokenizers.decoders.ByteLevel()
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=77
  )
  tokenizer.chat_template = TEMPLATE
  return tokenizer


@pytest.mark.parametrize("name", ["llama2", "gemma2"])
def test_the_tokenizer_and_its_template_go_with_the_model(name, tmp_path):
  config, params = conversion.load(GOLDEN / name)
  tokenizer = _tokenizer()
  out = export.export_model(tmp_path / "out", params, config, tokenizer=tokenizer)
  again = transformers.AutoTokenizer.from_pretrained(out)
  text = "HELLO, 2026: <s>A-B</s>"
  assert again.encode(text) == tokenizer.encode(text)
  assert again.chat_template == TEMPLATE and again.eos_token_id == 2
  assert _described(out)["max_position_embeddings"] == 77
  generation = json.loads((out / "generation_config.json").read_text())
  assert (generation["eos_token_id"], generation["pad_token_id"]) == (2, 0)


@pytest.mark.parametrize(
  ("settings", "expected"),
  [
    ({"temperature": 0.6}, 2),
    ({"eos_token_id": 1}, [1, 2]),  # of the document, where responses end with 2
    ({"eos_token_id": [2, 0], "_from_model_config": False}, [0, 2]),
    ({"eos_token_id": 7, "_from_model_config": True}, 2),  # a default that is ordinary text here
  ],
)
def test_generation_settings_of_the_source_are_kept_and_list_every_stop_token(tmp_path, settings, expected):
  config, params = conversion.load(GOLDEN / "llama2")
  source = tmp_path / "source"
  source.mkdir()
  (source / "config.json").write_text((GOLDEN / "llama2" / "config.json").read_text())
  (source / "generation_config.json").write_text(json.dumps(settings))
  tokenizer = _tokenizer()
  out = export.export_model(tmp_path / "out", params, config, source=source, tokenizer=tokenizer)
  written = json.loads((out / "generation_config.json").read_text())
  assert written.get("temperature") == settings.get("temperature") and written["eos_token_id"] == expected
  assert _described(out)["eos_token_id"] == expected and not written.get("_from_model_config")
  assert tokenization.stop_token_ids(tokenization.load_tokenizer(out)) == tuple(np.atleast_1d(expected))
  kept = export.export_model(tmp_path / "kept", params, config, source=source)
  assert json.loads((kept / "generation_config.json").read_text()) == settings


def test_a_folder_that_does_not_stop_is_refused_without_pytorch(tmp_path):
  check = lambda: verify_export.verify_export(tmp_path, None, None, dtype="float32", tolerance=0, stop_tokens=(1, 2))
  for content in ('{"eos_token_id": 1}', '{"temperature": 1.0}'):
    (tmp_path / "config.json").write_text('{"eos_token_id": [1, 2]}')  # which `generate` does not read then
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(InputError, match="would not stop at token [12], which ends a response") as caught:
      check()
    assert "\n" not in str(caught.value)


def test_without_pytorch_the_export_says_so(tmp_path, monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torch" else object())
  config, params = conversion.load(GOLDEN / "llama2")
  found = verify_export.verify_export(tmp_path / "out", params, config, dtype="float32", tolerance=1e-4)
  assert found.max_difference is None and "was not verified: torch is not installed" in found.message
