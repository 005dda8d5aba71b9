"""The real demo model: greedy answers equal PyTorch's token by token, and its export reads back exactly."""

import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from qempo_jax.data import tokenization
from qempo_jax.models import conversion
from qempo_jax.models import demo_model
from qempo_jax.models import export
from qempo_jax.models import verify_export
from qempo_jax.sampling import sampler
from qempo_jax.types import PromptBatch

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "smollm2_generation.json"
MAX_NEW_TOKENS = 64
# The sampler draws from softmax(logits / temperature): all mass lies on the largest logit here.
COLD = 1e-6


@pytest.fixture(scope="module")
def demo():
  return conversion.load(demo_model.demo_model_path())


@pytest.mark.slow  # `transformer_test` decodes the same model greedily
def test_greedy_answers_equal_pytorch_transformers(demo):
  golden = json.loads(GOLDEN.read_text())
  answers = golden["answers"]
  assert len(answers) == 10 and max(len(answer["answer_ids"]) for answer in answers) == MAX_NEW_TOKENS
  width = max(len(answer["prompt_ids"]) for answer in answers)
  tokens, mask = np.zeros((len(answers), width), np.int32), np.zeros((len(answers), width), bool)
  for row, answer in enumerate(answers):
    start = width - len(answer["prompt_ids"])
    tokens[row, start:], mask[row, start:] = answer["prompt_ids"], True
  config, params = demo
  rollout = sampler.sample_groups(
    jax.tree.map(jnp.asarray, params),
    config,
    PromptBatch(jnp.asarray(tokens), jnp.asarray(mask)),
    jax.random.key(0),
    group_size=1,
    max_length=MAX_NEW_TOKENS,
    temperature=COLD,
    stop_tokens=tuple(golden["stop_tokens"]),
  )
  for row, answer in enumerate(answers):
    ours = np.asarray(rollout.tokens[row, 0])[np.asarray(rollout.mask[row, 0])]
    assert ours.tolist() == answer["answer_ids"], answer["prompt"]


@pytest.mark.slow
def test_the_real_model_goes_out_and_comes_back_exactly(demo, tmp_path):
  config, params = demo
  path = demo_model.demo_model_path()
  tokenizer = tokenization.load_tokenizer(path)
  out = export.export_model(
    tmp_path / "out", params, config, tokenizer=tokenizer, source=path, max_shard_bytes=2 * 10**8
  )
  assert len(list(out.glob("model-*.safetensors"))) == 3
  again, back = conversion.load(out)
  assert again == config
  jax.tree.map(np.testing.assert_array_equal, back, params)
  theirs = transformers.AutoTokenizer.from_pretrained(out)
  for answer in json.loads(GOLDEN.read_text())["answers"]:
    chat = [{"role": "user", "content": answer["prompt"]}]
    assert theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) == answer["prompt_ids"]
  if importlib.util.find_spec("torch"):
    found = verify_export.verify_export(out, params, config, dtype="float32", tolerance=1e-3)
    assert found.max_difference <= 1e-3
