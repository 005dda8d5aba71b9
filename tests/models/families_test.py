"""Every family against PyTorch's logits for the same checkpoint: padded, packed, cached, sampled, sharded."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from qempo_jax import packing
from qempo_jax import scoring
from qempo_jax import sharding
from qempo_jax.models import conversion
from qempo_jax.models import decoding
from qempo_jax.models import kv_cache
from qempo_jax.models import lora
from qempo_jax.models import parameters
from qempo_jax.models import transformer
from qempo_jax.models.config import EXPERTS
from qempo_jax.sampling import sampler
from qempo_jax.types import PromptBatch

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "families"
FAMILIES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())
TOLERANCE = 1e-4
NEW = ("gemma4", "gemma4_moe", "gemma4_shared", "qwen3_5", "qwen3_5_moe")

# Each option that a family uses, and its value where it is switched off or read wrongly.
MISTAKES = [
  ("gemma4", {"value_norm": False}),
  ("gemma4", {"logit_softcap": None}),
  ("gemma4", {"query_scale": None}),
  ("gemma4", {"rope_scaling": None}),
  ("gemma4", {"local_rope_theta": 500.0}),
  ("gemma4", {"windows": (4, None, 7, None)}),
  ("gemma4", {"block_scale": False}),
  ("gemma4_moe", {"experts_per_token": 1}),
  ("gemma4_shared", {"activation": "silu"}),
  ("qwen3_5", {"norm_offset": 0.0}),
  ("qwen3_5", {"rotary_dim": 8}),
  ("qwen3_5_moe", {"normalise_experts": False}),
  ("llama2", {"rope_theta": 500.0}),
  ("llama2", {"activation": "gelu_tanh"}),
  ("llama2", {"norm_epsilon": 1e-2}),
  ("llama3", {"rope_scaling": None}),
  ("llama_biases", {"biases": ("query", "key", "value", "output")}),
  ("llama_biases", {"biases": ("query", "key", "value", "gate", "up", "down")}),
  ("mistral", {"windows": ()}),
  ("mistral", {"windows": (5, 5, 5)}),
  ("qwen2", {"biases": ()}),
  ("qwen2_windows", {"windows": ()}),
  ("qwen2_windows", {"windows": (4, 4, 4)}),
  ("qwen3", {"qk_norm": "none"}),
  ("olmo2", {"qk_norm": "none"}),
  ("olmo2", {"norm_placement": "pre"}),
  ("gemma2", {"embedding_scale": 1.0}),
  ("gemma2", {"norm_offset": 0.0}),
  ("gemma2", {"norm_placement": "pre"}),
  ("gemma2", {"query_scale": None}),
  ("gemma2", {"attention_softcap": None}),
  ("gemma2", {"logit_softcap": None}),
  ("gemma2", {"activation": "silu"}),
  ("gemma2", {"windows": ()}),
  ("gemma2", {"windows": (None, 4, None, 4)}),
  ("gemma3", {"rope_scaling": None}),
  ("gemma3", {"local_rope_theta": None}),
  ("gemma3", {"qk_norm": "none"}),
  ("gemma3", {"windows": (4, 4, 4, None)}),
  ("smollm3", {"rope_layers": ()}),
  ("smollm3", {"rope_layers": (False, True, True)}),
  ("smollm3_windows", {"windows": ()}),
  ("olmo3", {"rope_scaling": None}),
  ("olmo3", {"local_rope_theta": None}),
  ("olmo3", {"windows": ()}),
  ("phi3", {"windows": ()}),
  ("phi4", {"rope_scaling": None}),
  ("phi4", {"max_length": 33}),
  ("phi4_long", {"max_length": None}),
  ("dynamic", {"max_length": None}),
  ("granite", {"query_scale": None}),
  ("granite", {"embedding_scale": 1.0}),
  ("granite", {"residual_scale": 1.0}),
  ("granite", {"logit_divisor": 1.0}),
  ("granite4", {"rope_layers": ()}),
  ("ministral", {"windows": ()}),
  ("ministral3", {"query_growth": None}),
  ("ministral3", {"rope_scaling": None}),
  ("yarn", {"rope_scaling": None}),
  ("qwen3_moe", {"normalise_experts": False}),
  ("olmoe", {"normalise_experts": True}),
  ("olmoe", {"experts_per_token": 1}),
  ("mixtral", {"normalise_experts": False}),
  ("gpt_oss", {"attention_sinks": False}),
  ("gpt_oss", {"clamped_gate": None}),
  ("gpt_oss", {"clamped_gate": (1.702, 0.6)}),
  ("gpt_oss", {"clamped_gate": (1.3, 7.0)}),
  ("gpt_oss", {"biases": ("query", "key", "value", "output", *EXPERTS)}),
  ("gpt_oss", {"biases": ("query", "key", "value", "output", "router")}),
  ("gpt_oss", {"windows": ()}),
  ("gpt_oss", {"rope_scaling": None}),
]


def slow(case):
  return pytest.param(case, marks=pytest.mark.slow)


def _families(*default):
  """Every family, those marked slow whose options the given ones have between them."""
  return [name if name in default else slow(name) for name in FAMILIES]


@functools.cache
def _load(name):
  config, params = conversion.load(GOLDEN / name)
  golden = np.load(GOLDEN / name / "expected.npz")
  config = dataclasses.replace(config, max_length=int(max(golden["lengths"])))
  return config, jax.tree.map(jnp.asarray, params), {key: golden[key] for key in golden.files}


def _rows(golden):
  return np.split(golden["token_ids"], np.cumsum(golden["lengths"])[:-1])


def _padded(rows, side, width):
  tokens, mask = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), bool)
  for index, row in enumerate(rows):
    place = slice(0, len(row)) if side == "right" else slice(width - len(row), None)
    tokens[index, place], mask[index, place] = row, True
  return jnp.asarray(tokens), jnp.asarray(mask)


@functools.partial(jax.jit, static_argnums=0)
def _logits(config, params, tokens, positions, mask):
  hidden = transformer.forward(params, config, tokens, positions, mask, remat=False)
  return transformer.logits(hidden, transformer.unembedding(params), config)


def _forward(config, params, golden):
  """Logits [2, N, V] of every token of the rows: padded on the left, and on the right."""
  rows = _rows(golden)
  sides = [_padded(rows, side, max(map(len, rows)) + 2) for side in ("left", "right")]
  tokens, valid = map(jnp.concatenate, zip(*sides))
  positions = jnp.cumsum(valid, axis=1) - 1
  logits = _logits(config, params, tokens, positions, transformer.causal_mask(positions, valid))
  return np.stack(np.split(np.asarray(logits)[np.asarray(valid)], 2))


def _both(golden):
  return np.stack([golden["left"], golden["right"]])


@pytest.mark.parametrize("name", FAMILIES)
def test_padded_logits_equal_pytorch(name):
  config, params, golden = _load(name)
  np.testing.assert_allclose(_forward(config, params, golden), _both(golden), rtol=0, atol=TOLERANCE)


def test_the_parity_table_has_every_checkpoint():
  page = (pathlib.Path(__file__).parents[2] / "docs" / "models.md").read_text()
  table = page.split("<!-- parity table")[1].split("<!-- end")[0]
  assert [line.split()[1] for line in table.splitlines()[3:]] == FAMILIES


@pytest.mark.slow  # of the golden files: that they would show each option read wrongly
@pytest.mark.parametrize(("name", "mistake"), MISTAKES, ids=lambda x: x if isinstance(x, str) else str(*x))
def test_every_option_matters(name, mistake):
  config, params, golden = _load(name)
  wrong = dataclasses.replace(config, **mistake)
  assert wrong != config
  if name == "olmo2":  # the norms it has, in the places of those it lacks
    names = {"attention_norm": "attention_post_norm", "feed_forward_norm": "feed_forward_post_norm"}
    blocks = params["layers"]
    params = params | {"layers": blocks | {new: blocks[old] for new, old in names.items()}}
  assert np.abs(_forward(wrong, params, golden) - _both(golden)).max() > 20 * TOLERANCE


def _packed(golden):
  """Two prompts: one with two responses that share it, one with a single response."""
  parts = [(row[:n], row[n:]) for row, n in zip(_rows(golden), golden["prompt_lengths"])]
  (prompt, first), (same, second), (other, third) = parts
  np.testing.assert_array_equal(prompt, same)
  return packing.pack_groups([prompt, other], [[first, second], [third, []]], bucket=8)


def _of_responses(golden, values):
  """[P, G, T] of values [N] at the tokens that predict responses, 0 elsewhere."""
  expected = np.zeros((2, 2, 11))
  by_row = np.split(values, np.cumsum(golden["lengths"])[:-1])
  for (p, g), row, start in zip([(0, 0), (0, 1), (1, 0)], by_row, golden["prompt_lengths"]):
    own = row[start - 1 : -1]
    expected[p, g, : len(own)] = own
  return expected


def _score_packed(name, *, temperature=0.7, differentiate=True):
  """Log-probs and entropies [2, P, G, T] of packed rows, PyTorch's, and the gradient of the sum of log-probs or None."""
  config, params, golden = _load(name)
  packed = _packed(golden)
  settings = {"group_size": 2, "max_length": 11, "temperature": temperature, "chunk_size": 8}

  def total(params):
    stats = scoring.score_groups(params, config, packed, **settings)
    return jnp.sum(stats.log_prob), stats

  run = jax.grad(total, has_aux=True) if differentiate else lambda params: (None, total(params)[1])
  gradient, stats = jax.jit(run)(params)
  log_probs = scipy.special.log_softmax(golden["right"].astype(np.float64) / temperature, axis=-1)
  following = np.append(golden["token_ids"][1:], 0)
  own = _of_responses(golden, log_probs[np.arange(len(following)), following])
  entropies = _of_responses(golden, -np.sum(np.exp(log_probs) * log_probs, axis=-1))
  return np.stack([stats.log_prob, stats.entropy]), np.stack([own, entropies]), gradient


@pytest.mark.parametrize("name", _families("gemma2", "gemma3", "llama_biases", "gpt_oss"))
def test_packed_rows_equal_pytorch_and_their_gradient_reaches_every_parameter(name):
  ours, theirs, gradient = _score_packed(name)
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=2 * TOLERANCE / 0.7)
  for path, leaf in jax.tree.leaves_with_path(gradient):
    trained = path[-1].key != "block_scale"  # a buffer in PyTorch
    assert np.isfinite(leaf).all() and (np.abs(leaf).max() > 0) == trained, path


def _decode(name):
  """Logits [S, 2, V] of the tokens of two responses to a prompt, decoded from a cache, and PyTorch's; for each side."""
  config, params, golden = _load(name)
  (prompt, first), (_, second), _ = [(r[:n], r[n:]) for r, n in zip(_rows(golden), golden["prompt_lengths"])]
  steps = len(first)
  sides = [_padded([prompt], side, len(prompt) + 3) for side in ("left", "right")]
  tokens, mask = map(jnp.concatenate, zip(*sides))
  head = lambda hidden: transformer.logits(hidden, transformer.unembedding(params), config)

  @jax.jit
  def run(params):
    decoder = decoding.for_decoding(params, config, tokens.shape[1] + steps)
    hidden, prompts = decoding.prefill(params, config, tokens, mask)
    cache = kv_cache.KVCache.create(prompts, mask, config, group_size=2, max_length=steps)

    def step(cache, token_G):
      hidden, cache = decoding.decode(decoder, config, jnp.stack([token_G, token_G]), cache)
      return cache, head(hidden)

    fed = jnp.asarray(np.stack([first, second[:steps]], axis=1))
    return head(hidden), jax.lax.scan(step, cache, fed)[1]

  start, following = jax.device_get(run(params))
  for index, logits in enumerate(_both(golden)):
    rows = np.split(logits, np.cumsum(golden["lengths"])[:-1])[:2]
    ours = np.concatenate([np.stack([start[index]] * 2)[None], following[:, index]])
    yield ours, np.stack([row[len(prompt) - 1 : len(prompt) + steps] for row in rows], axis=1)


@pytest.mark.parametrize(
  "name", _families("gemma2", "gemma3", "llama_biases", "olmo2", "smollm3", "phi4", "gpt_oss", "qwen3_5")
)
def test_cached_decode_equals_pytorch(name):
  """A prompt twice, padded on the left and on the right, and two responses to each."""
  for ours, theirs in _decode(name):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


# `sampling/sampler_test` has the same of one decoder; here slots also start anew after their prompts' states.
@pytest.mark.parametrize(
  ("name", "slots"),
  [
    ("qwen3_5", 3),
    *(
      pytest.param(name, slots, marks=pytest.mark.slow)
      for name in ("gemma2", "gemma3", "gpt_oss", "ministral3", "olmo2", "olmoe", "qwen2_windows", *NEW)
      for slots in (0, 3)
      if (name, slots) != ("qwen3_5", 3)
    ),
  ],
)
def test_scoring_gives_the_samplers_log_probs(name, slots):
  config, params, golden = _load(name)
  prompts = [row[:n] for row, n in zip(_rows(golden), golden["prompt_lengths"])]
  settings = {"group_size": 4, "max_length": 9, "temperature": 0.8}
  batch = PromptBatch(*_padded(prompts, "left", 8))
  rollout = jax.device_get(
    sampler.sample_groups(params, config, batch, jax.random.key(1), stop_tokens=(2, 3, 4, 5), slots=slots, **settings)
  )
  responses = [[t[m] for t, m in zip(*group)] for group in zip(rollout.tokens, rollout.mask)]
  packed = packing.pack_groups(prompts, responses, bucket=16)
  stats = scoring.score_groups(params, config, packed, chunk_size=16, **settings)
  assert rollout.mask.sum() > 20
  np.testing.assert_allclose(stats.log_prob, rollout.log_probs, atol=TOLERANCE)
  np.testing.assert_allclose(stats.entropy, rollout.entropies, atol=TOLERANCE)


@pytest.mark.parametrize("name", [slow("gemma3"), "llama_biases", "olmo2", slow("olmoe"), "gpt_oss", *map(slow, NEW)])
def test_sharded_equals_single_device(name):
  config, params, golden = _load(name)
  mesh = sharding.make_mesh((2, 2, 2))
  placed = jax.device_put(params, sharding.tree_shardings(params, mesh, sharding.PARAM_RULES))
  matrix = "expert_gate" if config.num_experts else "gate"
  assert not placed["layers"][matrix].sharding.is_fully_replicated
  np.testing.assert_allclose(_forward(config, placed, golden), _both(golden), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", [slow("olmoe"), "gpt_oss"])
def test_experts_split_over_devices_give_the_same_loss_and_gradient(name):
  """Rows over (data, fsdp) and experts over tensor, with adapters of the experts."""
  config, params, golden = _load(name)
  rows = _rows(golden)
  tokens, valid = _padded([*rows, rows[0]], "left", 18)
  adapters = lora.init(jax.random.key(0), params, lora.LoraConfig(2, 4.0, "layers/expert"))
  adapters = jax.tree.map(lambda leaf: leaf + 0.1, adapters)

  def loss(params, adapters):
    positions = jnp.cumsum(valid, axis=1) - 1
    blocks = params["layers"]
    adapted = {
      name: lora.LowRank(blocks[name], part.a, part.b, part.scale) for name, part in adapters["layers"].items()
    }
    mask = transformer.causal_mask(positions, valid)
    logits = _logits(config, params | {"layers": blocks | adapted}, tokens, positions, mask)
    return jnp.mean(jnp.where(valid[..., None], logits**2, 0))

  step = jax.value_and_grad(loss, argnums=(0, 1))
  mesh = sharding.make_mesh((2, 2, 2))
  place = lambda tree: jax.device_put(tree, sharding.tree_shardings(tree, mesh, sharding.PARAM_RULES))
  split = jax.jit(sharding.on_mesh(step, mesh))(place(params), place(adapters))
  assert "tensor" in place(params)["layers"]["expert_gate"].sharding.spec
  jax.tree.map(
    lambda own, whole: np.testing.assert_allclose(own, whole, rtol=1e-4, atol=1e-5),
    split,
    jax.jit(step)(params, adapters),
  )


@pytest.mark.parametrize("name", [slow("gemma2"), "llama_biases"])
def test_bfloat16_products_stay_near(name):
  config, params, golden = _load(name)
  low = dataclasses.replace(config, compute_dtype="bfloat16")
  decoder = decoding.for_decoding(params, low, 1)
  for block in decoder["layers"]:
    wide = {key for key, leaf in block.items() if leaf.dtype == jnp.float32}
    assert wide == {key for key in block if "bias" in key or "norm" in key}
  difference = np.abs(_forward(low, params, golden) - _both(golden)).max()
  assert decoder["unembedding"].dtype == jnp.bfloat16 and 0 < difference < 0.3


def test_random_parameters_have_the_checkpoints_shapes():
  shapes = lambda tree: jax.tree.map(lambda leaf: leaf.shape, tree)
  for name in FAMILIES:
    config, params, _ = _load(name)
    made = jax.eval_shape(lambda rng, config=config: parameters.init(rng, config), jax.random.key(0))
    assert shapes(made) == shapes(params), name
