"""Tunix's DPO trainer and sampler on the same tokens, in Tunix's environment.

Its Llama reads SmolLM2's weights; its rotary base is a default of the code rather than the config's, so it is set here.
The trainer's own loop runs; a step ends when its results are computed.
"""

import functools
import json
import pathlib

from flax import nnx
import jax
import numpy as np
import optax
from tunix.generate import sampler as samplers
from tunix.models.llama3 import model as llama
from tunix.models.llama3 import params as llama_params
from tunix.rl import common
from tunix.sft.dpo import dpo_trainer

from experiments.benchmarks.bench import batches
from experiments.benchmarks.bench import serving
from experiments.benchmarks.bench import settings

NEVER = -1  # no token ends a response
_ROPE = llama.apply_rope


def main() -> None:
  """Serves the case's kind."""
  spec = serving.spec()
  {"offline": _offline, "decode": _decode}[spec["kind"]](spec, serving.Channel())


def _model(spec, name="policy"):
  folder = pathlib.Path(spec["inputs"]) / name
  c = json.loads((folder / "config.json").read_text(encoding="utf-8"))
  llama.apply_rope = functools.partial(_ROPE, rope_theta=c["rope_theta"])
  config = llama.ModelConfig(
    num_layers=c["num_hidden_layers"],
    vocab_size=c["vocab_size"],
    embed_dim=c["hidden_size"],
    hidden_dim=c["intermediate_size"],
    num_heads=c["num_attention_heads"],
    head_dim=c["head_dim"],
    num_kv_heads=c["num_key_value_heads"],
    rope_theta=c["rope_theta"],
    norm_eps=c["rms_norm_eps"],
    weight_tying=True,
    remat_config=llama.RematConfig[spec["remat"]],
  )
  mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  return llama_params.create_model_from_safe_tensors(str(folder), config, mesh, jax.numpy.float32)


def _offline(spec, channel):
  class Trainer(dpo_trainer.DPOTrainer):
    """Ends its step when all is computed."""

    def _post_process_train_step(self, aux):
      super()._post_process_train_step(aux)
      jax.block_until_ready((aux, nnx.state(self.model), nnx.state(self.optimizer)))
      channel.done(check=float(aux["loss"]))

  def loss(model, train_example, algorithm, beta, label_smoothing):
    given = {"algorithm": algorithm, "beta": beta, "label_smoothing": label_smoothing}
    value, aux = dpo_trainer.dpo_loss_fn(model, train_example, **given)
    return value, aux | {"loss": value}

  optimizer = optax.chain(
    optax.clip_by_global_norm(settings.MAX_GRAD_NORM),
    optax.adamw(settings.LEARNING_RATE, settings.B1, settings.B2, settings.EPSILON, weight_decay=settings.WEIGHT_DECAY),
  )
  config = dpo_trainer.DPOTrainingConfig(eval_every_n_steps=10**9, beta=settings.DPO_BETA)
  trainer = Trainer(_model(spec), _model(spec, "reference"), optimizer, config)
  trainer.with_loss_fn(loss, has_aux=True)
  prompts, responses = batches.pairs(spec["inputs"], spec["shape"])
  ones = np.ones_like
  row = (prompts, ones(prompts), responses[:, 0], ones(responses[:, 0]), responses[:, 1], ones(responses[:, 1]))

  def requests():
    while True:
      channel.wait()
      yield dpo_trainer.TrainingInput(*row)

  trainer.train(requests())


class _Ids:
  """A tokenizer whose text is the ids themselves."""

  def encode(self, text, **kwargs):
    return [int(word) for word in text.split()]

  def decode(self, ids, **kwargs):
    return ""

  bos_id = lambda self: None
  eos_id = lambda self: NEVER
  pad_id = lambda self: 0


def _decode(spec, channel):
  model, shape = _model(spec), spec["shape"]
  prompts = batches.prompts(spec["inputs"], shape)
  width = shape["prompt"] + shape["response"]
  c = model.config
  cache = samplers.CacheConfig(width, c.num_layers, c.num_kv_heads, c.head_dim)
  sampler = samplers.Sampler(model, _Ids(), cache)
  texts = [" ".join(map(str, row)) for row in np.repeat(prompts, shape["group"], 0)]
  check, seed = _given_loss(spec, model), 0
  while True:
    channel.wait()
    found = sampler(
      texts,
      max_generation_steps=shape["response"],
      max_prompt_length=shape["prompt"],
      eos_tokens=[NEVER],
      temperature=1.0,
      top_p=1.0,
      seed=seed,
    )
    seed += 1
    channel.done(check=check, tokens=sum(map(len, found.tokens)))


def _given_loss(spec, model) -> float:
  """The policy-gradient loss of given responses, as our side computes it."""
  shape = spec["shape"]
  given = batches.given_groups(spec["inputs"], shape).reshape(-1, shape["response"])
  ids = np.concatenate([np.repeat(batches.prompts(spec["inputs"], shape), shape["group"], 0), given], 1)
  sums = []
  for rows in np.split(ids, range(16, len(ids), 16)):
    mask = jax.numpy.ones(rows.shape, int)
    positions, seen = common.build_positions_from_mask(mask), common.make_causal_attn_mask(mask)
    sums.append(np.asarray(common.get_per_token_logps(model, rows, positions, seen, given.shape[1])).sum(-1))
  return -float(np.mean(batches.advantages(shape) * np.concatenate(sums)))


if __name__ == "__main__":
  main()
