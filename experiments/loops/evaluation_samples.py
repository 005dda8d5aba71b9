"""Fresh samples for `experiments.evaluate`: of which prompts, how, and once."""

import json
import os
import pathlib

from experiments import builders
from experiments import constrained
from experiments import demo
from experiments import workdir as workdirs
from experiments.loops import evaluation
from experiments.loops import runs
from qempo_jax.data import prompts
from qempo_jax.errors import InputError


def settings(config):
  """The config with the evaluation's own temperature and lengths, for sampler and scorer alike."""
  e, found = config.evaluation, config.copy_and_resolve_references()
  if e.temperature <= 0:
    raise InputError(f"evaluation.temperature={e.temperature:g} must be positive: diversity is that of samples")
  found.sampling.temperature = e.temperature
  if e.max_response_length:
    found.sampling.max_response_length = e.max_response_length
  if e.max_prompt_length:
    found.data.max_prompt_length = e.max_prompt_length
  return found


def prompt_rows(config) -> list[prompts.Row]:
  """The prompts to sample; a benchmark's split is named after its file."""
  e = config.evaluation
  if not e.prompts:
    named = config.data.source in ("open_list", "countdown") or all(":" in split for split in e.splits)
    if named and e.splits:
      return demo.evaluation_rows(config)
    print("Prompts: those that are trained on; name others by evaluation.prompts, or sources by evaluation.splits")
    return builders.training_rows(config)[: e.max_prompts or None]
  source = os.path.expandvars(e.prompts)
  if "$" in source:
    raise InputError(
      f"evaluation.prompts={e.prompts} names an environment variable that is not set; set it, or give the path"
    )
  path = pathlib.Path(source.partition(":")[2])
  stem = path.name.removesuffix(".gz").partition(".")[0]
  name = path.parent.name if stem == "question" else stem
  rows = prompts.load_rows(
    source, on_bad_row=config.data.on_bad_row, max_bad_share=config.data.max_bad_share, note=print
  )
  return [row | {"split": name} for row in rows[: e.max_prompts or None]]


def sample(config, workdir: pathlib.Path, rows, reward, checkpoint: str | int | None = None) -> None:
  """Writes samples of the reference and, where there is a checkpoint, of the trained policy (see `runs.trained_params`)."""
  policy = builders.policy(config)
  params, what = runs.trained_params(config, workdir, policy, checkpoint)
  evaluate = evaluation.Evaluator(config, policy, rows, reward)
  if evaluate.dropped:
    print(f"{evaluate.dropped} of {len(rows)} prompts are longer than {config.data.max_prompt_length} tokens and left out:"
          " see evaluation.max_prompt_length")  # fmt: skip
  prefix = f"{rows[0]['split']}-" if config.evaluation.prompts else ""
  write_once(
    config, workdir, f"{prefix}base", "the reference", lambda: evaluate(policy.params, method="base", seed=config.seed)
  )
  if params is not policy.params:
    method, seed = constrained.label(config), config.seed
    name = prefix + demo.run_name(constrained.file_name(method), seed)
    write_once(config, workdir, name, what, lambda: evaluate(params, method=method, seed=seed))
  else:
    print(f"Evaluated {what} alone")


def write_once(config, workdir: pathlib.Path, name: str, what: str, make) -> None:
  """Writes samples/NAME.jsonl unless it is there, made from the same policy in the same way."""
  keys = ("prompts", "max_prompts", "splits", "samples_per_prompt", "seed", "temperature", "max_prompt_length",
          "max_response_length", "reward")  # fmt: skip
  made = {"policy": what} | {key: config.evaluation[key] for key in keys}
  path = workdir / "samples" / f"{name}.jsonl"
  beside = path.with_suffix(".json")
  if (
    path.exists() and beside.exists() and json.loads(beside.read_text(encoding="utf-8")) != json.loads(json.dumps(made))
  ):
    raise InputError(
      f"{path} holds samples made in another way (see {beside}): remove both, or choose another --workdir."
    )
  if not path.exists():
    workdirs.write_atomically(beside, json.dumps(made, indent=1) + "\n")
  demo.run_once(workdir, name, make)
