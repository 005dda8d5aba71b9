"""Fresh samples for `experiments.evaluate`: of which prompts, how, and once."""

import json
import pathlib

from experiments import build
from experiments.configured import constraints as build_constraints
from experiments.configured import policy as build_policy
from experiments.configured import sampling as build_sampling
from experiments.run import workdir as workdirs
from experiments.run.parts import Parts
from qempo_jax.data import columns
from qempo_jax.errors import InputError
from qempo_jax.paths import read_json


def settings(config):
  """The config with the evaluation's own temperature, truncation and lengths, for sampler and scorer alike."""
  e, found = config.evaluation, config.copy_and_resolve_references()
  found.sampling.temperature = e.temperature
  for name in ("top_k", "top_p", "min_p"):
    if e[name] is not None:
      found.sampling[name] = e[name]
  if e.max_response_length:
    found.sampling.max_response_length = e.max_response_length
  if e.max_prompt_length:
    found.data.max_prompt_length = e.max_prompt_length
  return found


def sample(config, workdir: pathlib.Path, rows, reward, checkpoint: str | int | None = None) -> str:
  """Writes samples of the reference and of any trained policy (see `checkpoints.trained_params`); how, in words."""
  policy = build_policy.policy(config)
  plan = build.plan(config, policy, trains=False)
  words = build_sampling.in_words(plan.sampling)
  params, what = build.trained_params(config, workdir, policy, checkpoint)
  evaluate = build.evaluator(config, policy, rows, reward)
  if evaluate.dropped:
    print(f"{evaluate.dropped} of {len(rows)} prompts are longer than {evaluate.max_prompt_length} tokens and left out:"
          " see evaluation.max_prompt_length")  # fmt: skip
  prefix = f"{rows[0]['split']}-" if config.evaluation.prompts else ""
  how = words, columns.fingerprint(rows), evaluate
  write_once(config, workdir, f"{prefix}base", "the reference", *how, policy.params, "base", plan.seed)
  if params is not policy.params:
    method, seed = plan.label, plan.seed
    name = prefix + run_name(build_constraints.file_name(method), seed)
    write_once(config, workdir, name, what, *how, params, method, seed)
  else:
    print(f"Evaluated {what} alone")
  return words


def write_once(config, workdir: pathlib.Path, name: str, what: str, words: str, hashed: str, evaluate, *policy) -> None:
  """Writes samples/NAME.jsonl unless it is there, made from the same policy in the same way.

  Samples of each batch are on disk, in NAME.part, before the next is drawn: a call that was cut short is gone on with.
  """
  e = config.evaluation
  keys = ("prompts", "max_prompts", "splits", "samples_per_prompt", "seed", "temperature", "max_prompt_length",
          "max_response_length", "reward", "exact")  # fmt: skip
  made = {"policy": what} | {key: e[key] for key in keys}
  made |= {"rows": hashed} | ({"sampling": words} if words else {})
  path = workdir / "samples" / f"{name}.jsonl"
  beside = path.with_suffix(".json")
  if path.exists():
    if beside.exists() and read_json(beside, f"remove it and {path.name}") != json.loads(json.dumps(made)):
      raise InputError(
        f"{path} holds samples made in another way (see {beside}): remove both, or choose another --workdir."
      )
    print(f"{name}: done before, kept {path}")
    return
  parts = Parts(path.with_suffix(".part"), made | {"cluster": list(e.cluster)})
  done = sum(map(len, parts.records)) // e.samples_per_prompt
  gone_on = f", from prompt {done + 1} on" if done else ""
  print(f"Sampling {what}: {e.samples_per_prompt} responses a prompt{gone_on}; compiling comes first", flush=True)
  params, method, seed = policy
  batches = evaluate.batches(params, method=method, seed=seed, first=done)
  for _ in parts.extend(map(evaluate.without_nan, batches)):
    pass
  workdirs.write(beside, json.dumps(made, indent=1) + "\n")
  workdirs.write(path, "".join(json.dumps(row) + "\n" for rows in parts.records for row in rows))
  parts.remove()


def run_once(workdir: pathlib.Path, name: str, make) -> None:
  """Writes samples/NAME.jsonl, unless an earlier call did."""
  path = workdir / "samples" / f"{name}.jsonl"
  if path.exists():
    print(f"{name}: done before, kept {path}")
    return
  text = "".join(json.dumps(row) + "\n" for row in make())
  workdirs.write(path, text)


def run_name(method: str, seed: int) -> str:
  """Names the folder and the samples of one run."""
  return f"{method}-seed{seed}"
