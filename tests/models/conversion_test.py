"""Reading checkpoints: the way in is exact, and what is damaged is said in one line."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from qempo_jax.errors import InputError
from qempo_jax.models import config as config_lib
from qempo_jax.models import conversion
from qempo_jax.models import transformer

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


def _tensors(config):
  """A checkpoint's tensors from our own parameters, written here from Hugging Face's conventions."""
  params = jax.device_get(transformer.init(jax.random.key(0), config, stddev=0.3))
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
  params, tensors = _tensors(config_lib.from_hugging_face(HF_CONFIG))
  (tmp_path / "config.json").write_text(json.dumps(HF_CONFIG))
  safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
  return tmp_path, params, tensors


def test_safetensors_come_in_exactly(folder):
  config, params = conversion.load(folder[0])
  assert config.head_dim == 4 and config.rope_theta == 500.0
  jax.tree.map(np.testing.assert_array_equal, params, folder[1])


def _save(folder, tensors):
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def _change(folder, **changes):
  (folder / "config.json").write_text(json.dumps(HF_CONFIG | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f, t: _save(f, {k: v for k, v in t.items() if "1.mlp.up" not in k}), "no tensor .*1.mlp.up_proj"),
        (lambda f, t: _save(f, t | {"model.norm.weight": np.ones(9, np.float32)}), "model.norm.weight.*shape"),
        (lambda f, t: _save(f, t | {"model.norm.weight": np.full(16, np.nan, np.float32)}), "NaN"),
        (lambda f, t: _cut(f / "model.safetensors"), "damaged or cut short"),
        (lambda f, t: (f / "model.safetensors").unlink(), "no .safetensors file"),
        (lambda f, t: (f / "config.json").unlink(), "config.json cannot be read"),
        (lambda f, t: _change(f, model_type="mixtral"), "mixtral"),
        (lambda f, t: _change(f, rope_scaling={"rope_type": "yarn"}), "yarn"),
        (lambda f, t: _change(f, attention_bias=True), "attention_bias"),
        (lambda f, t: _change(f, num_key_value_heads=3), "not a multiple"),
        (lambda f, t: _change(f, hidden_size=20), "does not fit"),
    ],
)
def test_damage_is_named(folder, damage, message):
  damage(folder[0], folder[2])
  with pytest.raises(InputError, match=message) as caught:
    conversion.load(folder[0])
  assert "\n" not in str(caught.value)


def _cut(path):
  path.write_bytes(path.read_bytes()[:-100])


def test_a_truncated_gguf_is_named(tmp_path):
  path = tmp_path / "model.gguf"
  path.write_bytes(b"GGUF" + bytes(20))
  with pytest.raises(InputError, match="not a complete Llama GGUF"):
    conversion.load(path)


def test_an_absent_model_is_named(tmp_path, monkeypatch):
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  with pytest.raises(InputError, match="does not exist"):
    conversion.load(tmp_path / "none.gguf")
  with pytest.raises(InputError, match="neither a local model folder"):
    conversion.load("nobody/no-such-model")
