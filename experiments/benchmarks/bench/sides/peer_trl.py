"""TRL's trainers and transformers' `generate` on the same tokens, in TRL's environment.

The trainers' own loops run: a callback waits for the command at a step's beginning and answers at its end. Texts are
never tokenised, so that the ids are the benchmark's.
"""

import functools
import tempfile
import time

import datasets
import torch
import transformers
import trl

from experiments.benchmarks.bench import batches
from experiments.benchmarks.bench import serving
from experiments.benchmarks.bench import settings

MANY = 10**6


def main() -> None:
  """Serves the case's kind."""
  spec = serving.spec()
  {"offline": _offline, "online": _online, "decode": _decode}[spec["kind"]](spec, serving.Channel())


class _Commands(transformers.TrainerCallback):
  """Runs a step on command."""

  def __init__(self, channel, figures):
    self._channel, self._figures = channel, figures

  def on_step_begin(self, *args, **kwargs):
    self._channel.wait()

  def on_step_end(self, *args, **kwargs):
    self._channel.done(**self._figures)


def _model(spec, name="policy", dtype=torch.float32):
  return transformers.AutoModelForCausalLM.from_pretrained(f"{spec['inputs']}/{name}", dtype=dtype)


def _tokenizer(spec):
  return transformers.AutoTokenizer.from_pretrained(f"{spec['inputs']}/policy")


def _common(spec) -> dict:
  return {
    "output_dir": tempfile.mkdtemp(),
    "bf16": spec["dtype"] == "bfloat16",
    "use_cpu": True,
    "gradient_checkpointing": spec["checkpointing"],
    "learning_rate": settings.LEARNING_RATE,
    "lr_scheduler_type": "constant",
    "adam_beta1": settings.B1,
    "adam_beta2": settings.B2,
    "adam_epsilon": settings.EPSILON,
    "weight_decay": settings.WEIGHT_DECAY,
    "max_grad_norm": settings.MAX_GRAD_NORM,
    "max_steps": MANY,
    "save_strategy": "no",
    "report_to": "none",
    "logging_steps": MANY,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
  }


def _offline(spec, channel):
  figures = {}

  class Trainer(trl.DPOTrainer):
    """Takes pairs as ids, in the given order, and reports its loss."""

    def _prepare_dataset(self, dataset, *args, **kwargs):
      return dataset

    def _compute_loss(self, *args, **kwargs):
      loss = super()._compute_loss(*args, **kwargs)
      figures["check"] = float(loss[0] if isinstance(loss, tuple) else loss)
      return loss

  prompts, responses = batches.pairs(spec["inputs"], spec["shape"])
  rows = {"prompt_ids": prompts, "chosen_ids": responses[:, 0], "rejected_ids": responses[:, 1]}
  rows = datasets.Dataset.from_dict({name: ids.tolist() for name, ids in rows.items()})
  count = spec["shape"]["pairs"]
  arguments = trl.DPOConfig(**_common(spec), per_device_train_batch_size=count, beta=settings.DPO_BETA, max_length=None)
  trainer = Trainer(
    _model(spec),
    _model(spec, "reference"),
    args=arguments,
    train_dataset=rows,
    processing_class=_tokenizer(spec),
    callbacks=[_Commands(channel, figures)],
  )
  trainer.train()


def _online(spec, channel):
  shape = spec["shape"]
  prompts = batches.prompts(spec["inputs"], shape)
  figures = {}

  class Trainer(trl.GRPOTrainer):
    """Takes prompts by their number, and times its sampling."""

    def _tokenize_prompts(self, prompts_given):
      return [prompts[int(text)].tolist() for text in prompts_given], None, {}

    def _generate(self, *args, **kwargs):
      started = time.perf_counter()
      found = super()._generate(*args, **kwargs)
      figures["sampling_seconds"] = time.perf_counter() - started
      figures["tokens"] = sum(map(len, found[1]))
      return found

  count, micro = shape["prompts"] * shape["group"], shape["micro_batch"]
  arguments = trl.GRPOConfig(
    **_common(spec),
    per_device_train_batch_size=micro,
    gradient_accumulation_steps=count // micro,
    num_generations=shape["group"],
    max_completion_length=shape["response"],
    beta=settings.KL_WEIGHT,
    temperature=1.0,
    generation_kwargs={"min_new_tokens": shape["response"]},
  )
  reward = lambda completion_ids, **rest: [batches.distinct_share(ids) for ids in completion_ids]
  reward.__name__ = "distinct_share"
  trainer = Trainer(
    _model(spec),
    reward,
    args=arguments,
    train_dataset=datasets.Dataset.from_dict({"prompt": [str(index) for index in range(shape["prompts"])]}),
    processing_class=_tokenizer(spec),
    callbacks=[_Commands(channel, figures)],
  )
  score = functools.partial(trainer._get_per_token_logps_and_entropies, trainer.model)
  figures["check"] = _given_loss(spec, lambda *inputs: score(*inputs)[0])
  trainer.train()


def _given_loss(spec, score) -> float:
  """The policy-gradient loss of given responses, as our side computes it."""
  shape = spec["shape"]
  given = torch.tensor(batches.given_groups(spec["inputs"], shape), dtype=torch.long).flatten(0, 1)
  prompts = torch.tensor(batches.prompts(spec["inputs"], shape), dtype=torch.long)
  ids = torch.cat([prompts.repeat_interleave(shape["group"], 0), given], dim=1)
  with torch.no_grad():
    parts = zip(ids.split(32), torch.ones_like(ids).split(32))
    found = torch.cat([score(rows, mask, given.shape[1]).sum(-1) for rows, mask in parts])
  return -float((torch.tensor(batches.advantages(shape)) * found).mean())


def _decode(spec, channel):
  model, shape = _model(spec, dtype=getattr(torch, spec["dtype"])).eval(), spec["shape"]
  prompts = torch.tensor(batches.prompts(spec["inputs"], shape), dtype=torch.long)
  ids = prompts.repeat_interleave(shape["group"], 0)
  length = shape["response"]

  def score(rows, mask, kept):
    logits = model(rows, attention_mask=mask, logits_to_keep=kept + 1).logits[:, :-1]
    return torch.log_softmax(logits, -1).gather(-1, rows[:, -kept:, None])[..., 0]

  check = _given_loss(spec, score)
  torch.manual_seed(0)
  while True:
    channel.wait()
    with torch.no_grad():
      found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        top_k=0,
        top_p=1.0,
        temperature=1.0,
        min_new_tokens=length,
        max_new_tokens=length,
      )
    channel.done(check=check, tokens=int(found[:, prompts.shape[1] :].numel()))


if __name__ == "__main__":
  main()
