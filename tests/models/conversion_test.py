"""Reading checkpoints: the way in is exact, and what is damaged is said in one line."""

import functools
import json
import pathlib
import pickle
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from qempo_jax import sharding
from qempo_jax.errors import InputError
from qempo_jax.models import conversion
from qempo_jax.models import hugging_face
from qempo_jax.models import parameters
from qempo_jax.models import safetensors_files

GPT_OSS = pathlib.Path(__file__).parent.parent / "golden" / "families" / "gpt_oss_mxfp4"
HF_CONFIG = {
  "model_type": "llama",
  "vocab_size": 40,
  "hidden_size": 16,
  "intermediate_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "rms_norm_eps": 1e-5,
  "rope_theta": 500.0,
  "tie_word_embeddings": False,
}


@functools.cache
def _tensors(config):
  """A checkpoint's tensors from our own parameters, written here from Hugging Face's conventions."""
  params = jax.device_get(parameters.init(jax.random.key(0), config, stddev=0.3))
  matrix = lambda x, rows: np.ascontiguousarray(x.reshape(rows, -1).T)
  d, layers = config.hidden_size, params["layers"]
  tensors = {
    "model.embed_tokens.weight": params["embedding"],
    "model.norm.weight": params["final_norm"],
    "lm_head.weight": params["unembedding"],
  }
  for n in range(config.num_layers):
    start = f"model.layers.{n}."
    tensors |= {
      start + "input_layernorm.weight": layers["attention_norm"][n],
      start + "post_attention_layernorm.weight": layers["feed_forward_norm"][n],
      start + "self_attn.q_proj.weight": matrix(layers["query"][n], d),
      start + "self_attn.k_proj.weight": matrix(layers["key"][n], d),
      start + "self_attn.v_proj.weight": matrix(layers["value"][n], d),
      start + "self_attn.o_proj.weight": matrix(layers["output"][n], layers["output"][n].size // d),
      start + "mlp.gate_proj.weight": matrix(layers["gate"][n], d),
      start + "mlp.up_proj.weight": matrix(layers["up"][n], d),
      start + "mlp.down_proj.weight": matrix(layers["down"][n], config.intermediate_size),
    }
  return params, tensors


@pytest.fixture
def folder(tmp_path):
  params, tensors = _tensors(hugging_face.from_hugging_face(HF_CONFIG))
  tensors = dict(tensors)
  (tmp_path / "config.json").write_text(json.dumps(HF_CONFIG))
  safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
  return tmp_path, params, tensors


def test_safetensors_come_in_exactly(folder):
  config, params = conversion.load(folder[0])
  assert config.head_dim == 4 and config.rope_theta == 500.0
  jax.tree.map(np.testing.assert_array_equal, params, folder[1])


def test_shards_come_in_exactly(folder):
  _shard(folder[0], folder[2])
  jax.tree.map(np.testing.assert_array_equal, conversion.load(folder[0])[1], folder[1])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_comes_in_exactly(folder, dtype):
  _save(folder[0], {name: tensor.astype(dtype) for name, tensor in folder[2].items()})
  params = conversion.load(folder[0])[1]
  jax.tree.map(lambda ours, own: np.testing.assert_array_equal(ours, own.astype(dtype)), params, folder[1])
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}


def test_what_follows_from_the_rest_may_be_repeated(folder):
  path, _, tensors = folder
  _change(path, tie_word_embeddings=True)
  repeated = {
    "lm_head.weight": tensors["model.embed_tokens.weight"],
    "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32),
  }
  _save(path, tensors | repeated)
  config, params = conversion.load(path)
  assert config.tie_embeddings and "unembedding" not in params


def _save(folder, tensors):
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def _shard(folder, tensors, *, lost=None, renamed=None, unlisted=None):
  """The checkpoint in two shards; an index that names what is lost, or another file, or not all that is there."""
  (folder / "model.safetensors").unlink()
  names = sorted(tensors)
  weight_map = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(names)}
  for file in set(weight_map.values()):
    held = {name: tensors[name] for name in names if weight_map[name] == file and name != lost}
    safetensors.numpy.save_file(held, folder / file)
  listed = {name: renamed or file for name, file in weight_map.items() if name != unlisted}
  (folder / safetensors_files.INDEX).write_text(json.dumps({"weight_map": listed}))


def _change(folder, **changes):
  (folder / "config.json").write_text(json.dumps(HF_CONFIG | changes))


UP = "model.layers.1.mlp.up_proj.weight"
NORM = "model.norm.weight"
DOWN = "model.layers.1.mlp.experts.down_proj"


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (lambda f, t: _save(f, {k: v for k, v in t.items() if k != UP}), "no tensor .*1.mlp.up_proj"),
    (lambda f, t: _save(f, t | {"model.layers.2.mlp.up_proj.weight": t[UP]}), "holds .*layers.2.mlp.up_proj"),
    (lambda f, t: _save(f, t | {UP: t[UP].T.copy()}), r"1.mlp.up_proj.*shape \(16, 24\).*fit.*\(24, 16\)"),
    (lambda f, t: _save(f, t | {NORM: np.ones(9, np.float32)}), "model.norm.weight.*shape"),
    (lambda f, t: _save(f, t | {NORM: np.full(16, np.nan, np.float32)}), "model.norm.weight.*NaN"),
    (lambda f, t: _save(f, t | {NORM: np.full(16, -np.inf, np.float16)}), "model.norm.weight.*infinity"),
    (lambda f, t: _save(f, t | {UP: _with_nan(t[UP]).astype(ml_dtypes.bfloat16)}), "1.mlp.up_proj.*NaN"),
    (lambda f, t: _save(f, t | {UP: t[UP].astype(np.int8)}), "1.mlp.up_proj.*stored as I8"),
    (lambda f, t: (f / "model.safetensors").write_bytes(pickle.dumps(t)), "damaged or cut short"),
    (lambda f, t: _overlapping(f / "model.safetensors"), "damaged or cut short"),
    (lambda f, t: (_shard(f, t), _index(f, {"weight_map": {UP: 3}})), "names the file 3"),
    (lambda f, t: (_shard(f, t), _index(f, {"weight_map": []})), "no weight_map"),
    (lambda f, t: _cut(f / "model.safetensors"), "damaged or cut short"),
    (lambda f, t: (f / "model.safetensors").write_bytes(b""), "damaged or cut short"),
    (lambda f, t: (f / "model.safetensors").unlink(), "no .safetensors file$"),
    (lambda f, t: _only_pickle(f), "no .safetensors file: pickled weights.*runs the code inside it"),
    (lambda f, t: (_shard(f, t), (f / safetensors_files.INDEX).unlink()), "2 .safetensors files and no .*index"),
    (lambda f, t: (_shard(f, t), (f / safetensors_files.INDEX).write_text("{")), "index.json cannot be read"),
    (lambda f, t: (_shard(f, t), (f / safetensors_files.INDEX).write_text("{}")), "no weight_map"),
    (lambda f, t: _shard(f, t, lost=UP), "index.json names .*1.mlp.up_proj"),
    (lambda f, t: _shard(f, t, unlisted=UP), "index.json has no entry for .*1.mlp.up_proj"),
    (lambda f, t: _shard(f, t, renamed="model-3.safetensors"), "model-3.*not in the folder"),
    (lambda f, t: _shard(f, t, renamed="../elsewhere.safetensors"), "elsewhere.*not in the folder"),
    (lambda f, t: (_shard(f, t), _cut(f / "model-00002-of-00002.safetensors")), "00002-of.*cut short"),
    (lambda f, t: (f / "config.json").unlink(), "config.json cannot be read"),
    (lambda f, t: (f / "config.json").write_text("[]"), "no JSON object"),
    (lambda f, t: _change(f, attention_bias=True), "no tensor .*layers.0.self_attn.k_proj.bias'.* and 5 more"),
    (lambda f, t: _change(f, tie_word_embeddings=True), "ties the embeddings.*lm_head.weight"),
    (lambda f, t: _change(f, num_hidden_layers=1), "holds 'model.layers.1.input_layernorm.weight'.*6 more"),
    (lambda f, t: _change(f, hidden_size=20), "5 rotated numbers do not fit head_dim=5"),
    (lambda f, t: _change(f, hidden_size=24), "does not fit"),
    (lambda f, t: _change(f, vocab_size=2**27), r"embed_tokens.weight' has shape \(40, 16\)"),
    (lambda f, t: _change(f, num_hidden_layers=1999), "1999 blocks, but there are 21 tensors"),
    (lambda f, t: _change(f, num_hidden_layers=3), "no tensor 'model.layers.2.* and 6 more"),
    (lambda f, t: _change(f, num_key_value_heads=4), "k_proj.weight' has shape .* does not fit"),
    (lambda f, t: _change(f, head_dim=8), "does not fit"),
    (lambda f, t: _change(f, intermediate_size=-1), "intermediate_size=-1"),
    (lambda f, t: _change(f, model_type="qwen2"), "no tensor .*bias"),
  ],
)
def test_damage_is_named(folder, damage, message):
  damage(folder[0], folder[2])
  with pytest.raises(InputError, match=message) as caught:
    conversion.load(folder[0])
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (lambda t: t.pop(f"{DOWN}_scales"), "_blocks' have shapes .* a scale for 16 bytes"),
    (lambda t: t.update({f"{DOWN}_scales": t[f"{DOWN}_scales"][:, :5]}), "a scale for 16 bytes"),
    (lambda t: t[f"{DOWN}_scales"].fill(255), "down_proj' holds NaN or infinity"),
    (lambda t: t.update({f"{DOWN}_{part}": t[f"{DOWN}_{part}"][:2] for part in ("blocks", "scales")}), "does not fit"),
  ],
)
def test_damaged_mxfp4_is_named(damage, message, tmp_path):
  shutil.copytree(GPT_OSS, tmp_path, dirs_exist_ok=True)
  tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
  damage(tensors)
  _save(tmp_path, tensors)
  with pytest.raises(InputError, match=message):
    conversion.load(tmp_path)


@pytest.mark.parametrize("mesh", [None, (2, 2, 2)])
def test_damage_is_named_on_every_way_in(folder, mesh):
  _save(folder[0], folder[2] | {UP: _with_nan(folder[2][UP])})
  with pytest.raises(InputError, match="1.mlp.up_proj.*NaN"):
    conversion.load(folder[0], mesh=mesh and sharding.make_mesh(mesh))


def test_shapes_are_checked_before_anything_is_read(folder, monkeypatch):
  _change(folder[0], intermediate_size=25)
  monkeypatch.setattr(safetensors_files, "get", lambda *args: pytest.fail("a tensor was read"))
  with pytest.raises(InputError, match="does not fit"):
    conversion.load(folder[0])


def _with_nan(tensor):
  damaged = tensor.copy()
  damaged[3, 4] = np.nan
  return damaged


def _index(folder, content):
  (folder / safetensors_files.INDEX).write_text(json.dumps(content))


def _overlapping(path):
  """A header that places a tensor on another one's bytes."""
  raw = path.read_bytes()
  size = int.from_bytes(raw[:8], "little")
  header = json.loads(raw[8 : 8 + size])
  norms = [name for name in header if "layernorm" in name]
  header[norms[0]]["data_offsets"] = header[norms[1]]["data_offsets"]
  text = json.dumps(header).encode()
  path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])


def _only_pickle(folder):
  (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _cut(path):
  path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("name", ["model.bin", "model.pt"])
def test_a_pickle_is_refused_unopened(tmp_path, name):
  with pytest.raises(InputError, match="pickled weights.*never loaded.*save_pretrained"):
    conversion.load(tmp_path / name)


def test_one_file_of_a_checkpoint_is_refused(folder):
  with pytest.raises(InputError, match="give its folder"):
    conversion.load(folder[0] / "model.safetensors")


def test_a_truncated_gguf_is_named(tmp_path):
  path = tmp_path / "model.gguf"
  path.write_bytes(b"GGUF" + bytes(20))
  with pytest.raises(InputError, match="not a complete GGUF"):
    conversion.load(path)


def test_an_absent_model_is_named(tmp_path, monkeypatch):
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  with pytest.raises(InputError, match="does not exist"):
    conversion.load(tmp_path / "none.gguf")
  with pytest.raises(InputError, match="neither a local model folder"):
    conversion.load("nobody/no-such-model")


def test_keys_that_no_block_uses_are_left_out(tmp_path):
  """Published files hold them for blocks that use those of an earlier one, and heads that predict later tokens."""
  source = GPT_OSS.parent / "gemma4_shared"
  tensors = safetensors.numpy.load_file(source / "model.safetensors")
  copied = {
    f"model.layers.5.self_attn.{name}.weight": np.ones(3, np.float32) for name in ("k_proj", "v_proj", "k_norm")
  }
  safetensors.numpy.save_file(
    tensors | copied | {"mtp.fc.weight": np.ones(2, np.float32)}, tmp_path / "model.safetensors"
  )
  shutil.copy(source / "config.json", tmp_path)
  jax.tree.map(np.testing.assert_array_equal, conversion.load(tmp_path)[1], conversion.load(source)[1])
  safetensors.numpy.save_file(
    tensors | {"model.layers.2.self_attn.k_proj_2.weight": np.ones(2, np.float32)}, tmp_path / "model.safetensors"
  )
  with pytest.raises(InputError, match="holds 'model.layers.2.self_attn.k_proj_2.weight'"):
    conversion.load(tmp_path)


@pytest.mark.parametrize("family", ["olmoe", "qwen3_5_moe", "mixtral"])
def test_experts_come_in_from_tensors_of_all_experts(family, tmp_path):
  """As published mixtures of Qwen3.5 have them: gate and up [experts, 2 F, D] in one, down [experts, D, F]."""
  source = pathlib.Path(__file__).parent.parent / "golden" / "families" / family
  config, expected = conversion.load(source)
  tensors = safetensors.numpy.load_file(source / "model.safetensors")
  experts = lambda start, name: np.stack([tensors.pop(f"{start}.{e}.{name}") for e in range(config.num_experts)])
  parts = ("w1", "w3", "w2") if family == "mixtral" else ("gate_proj", "up_proj", "down_proj")
  for block in range(config.num_layers):
    start = f"model.layers.{block}.mlp.experts"
    own = start.replace("mlp", "block_sparse_moe") if family == "mixtral" else start
    gate, up, down = (experts(own, f"{name}.weight") for name in parts)
    tensors |= {f"{start}.gate_up_proj": np.concatenate([gate, up], axis=1), f"{start}.down_proj": down}
  tensors = {name.replace(".block_sparse_moe.", ".mlp."): tensor for name, tensor in tensors.items()}
  safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
  shutil.copy(source / "config.json", tmp_path)
  jax.tree.map(np.testing.assert_array_equal, conversion.load(tmp_path)[1], expected)
  tensors[f"{start}.gate_up_proj"] = np.swapaxes(tensors[f"{start}.gate_up_proj"], 1, 2).copy()
  safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
  with pytest.raises(InputError, match=r"gate_up_proj' has shape .* does not fit"):
    conversion.load(tmp_path)
