"""The runs of a frontier: which there are, which are missing, and how either kind is made."""

from collections.abc import Callable
import functools
import json
import operator
import pathlib
import time
from typing import NamedTuple

import jax
import numpy as np

from experiments import build
from experiments import loop
from experiments import overrides
from experiments.configured import constraints as build_constraints
from experiments.configured import data as build_data
from experiments.configured import objective as build_objective
from experiments.configured import policy as build_policy
from experiments.measure import enumerable
from experiments.measure import text_figures
from experiments.run import checkpoints
from experiments.run import workdir as workdirs
from experiments.run.display import Display
from qempo_jax import exact
from qempo_jax.errors import InputError
from qempo_jax.evaluation import equivalence
from qempo_jax.evaluation import functional
from qempo_jax.evaluation import solutions
from qempo_jax.paths import read_json
from qempo_jax.rewards import answers
from qempo_jax.rewards import registry

DRAWS = (1, 8, 64)  # every k of pass@k and distinct@k on the toy
SAMPLED_DRAWS = (1, 2, 4, 8, 16, 32, 64)  # the same on samples, as far as a prompt has so many
CURVE_POINTS = 25  # floors at which the programs are solved


class Run(NamedTuple):
  """One run of a frontier.

  Attributes:
    method: its group in the config.
    point: ((key, value), ...) that make the operating point.
    seed: of training.
    name: of its folder.
  """

  method: str
  point: tuple
  seed: int
  name: str


def planned(config) -> list[Run]:
  """Every run of the sweep; a method that is not trained has the first seed alone."""
  runs = []
  for method in config.methods:
    for index, point in enumerate(config.points[method]):
      for seed in config.seeds if config[method].steps else config.seeds[:1]:
        runs.append(Run(method, tuple(map(tuple, point)), seed, f"{method}-{index}-seed{seed}"))
  return runs


def check(config, checkpoint: str | int | None = None) -> None:
  """Raises InputError for a method without operating points, or a key or checkpoint that a run lacks, before any run."""
  if config.runner not in RUNNERS:
    raise InputError(f"config.runner={config.runner!r} is not one of {', '.join(RUNNERS)}")
  for method in config.methods:
    if method not in config or method not in config.points or not config.points[method]:
      raise InputError(f"config.methods has {method!r}, which lacks a config of its own, or points.{method}: add both")
  build_constraints.check_names(config)
  runs = planned(config)
  configs = [config_of(config, run) for run in runs]
  for run, of_run in zip(runs, configs, strict=True):
    build.check_one_method(of_run)
    build_objective.online(of_run)
    if checkpoint not in (None, "last") and of_run.steps and not _keeps_checkpoints(config, of_run):
      raise InputError(
        f"{run.name} keeps no checkpoints, so --checkpoint={checkpoint} names none: only its last state is there"
      )
  if config.runner == "online":
    _check_shared(runs, configs, lambda key: key.startswith("model.") or key in build_policy.LOADED)
    return
  for method in config.methods:
    trained = [place for place, run in enumerate(runs) if run.method == method and config[method].steps]
    together = [runs[place] for place in trained], [configs[place] for place in trained]
    _check_shared(*together, lambda key: key not in (*enumerable.FREE, "method"))
    if together[1] and not enumerable.same_method(together[1]):
      raise InputError(f"points.{method} change more of its method than numbers: make a group of its own for each")


def _check_shared(runs, configs, shared: Callable[[str], bool]) -> None:
  """Raises InputError where runs that are made together differ in a key that they share."""
  value = lambda of_run, key: functools.reduce(operator.getitem, key.split("."), of_run)
  flat = [{key: value(of_run, key) for key in overrides.leaf_keys(of_run) if shared(key)} for of_run in configs]
  for run, found in zip(runs, flat):
    for key, own in found.items():
      if own != flat[0].get(key, own):
        raise InputError(
          f"{run.name} has {key} = {own!r} and {runs[0].name} {flat[0][key]!r}: runs of one sweep share it; make two sweeps"
        )


def config_of(config, run: Run):
  """The whole config of one run."""
  of_run = config[run.method].copy_and_resolve_references()
  of_run.seed = run.seed
  keys = set(overrides.leaf_keys(of_run))
  for key, value in run.point:
    if key not in keys:
      raise InputError(f"points.{run.method} sets {key}, which its config does not have: correct the key")
    try:
      of_run.update_from_flattened_dict({key: value})
    except TypeError as error:
      raise InputError(
        f"points.{run.method} sets {key} = {value!r}, which is of another type there: {error}"
      ) from error
  return of_run


def missing(config, workdir: pathlib.Path | None) -> list[Run]:
  """The runs without a result."""
  return [run for run in planned(config) if workdir is None or not _result(workdir, run).exists()]


def check_made(config, workdir: pathlib.Path, checkpoint: str | int | None) -> None:
  """Raises InputError where a run was measured at another checkpoint than the one that is asked for now."""
  for run in planned(config):
    path = _result(workdir, run)
    made = _read(path).get("checkpoint") if path.exists() else None
    asked = _asked_checkpoint(config_of(config, run), checkpoint)
    if made not in (None, asked):
      raise InputError(f"{path} is of --checkpoint={made}, not {asked}: remove that file, or choose another --workdir")


def read(config, workdir: pathlib.Path) -> list[dict]:
  """The results of all runs."""
  return [_read(_result(workdir, run)) for run in planned(config)]


def _read(path: pathlib.Path) -> dict:
  return read_json(path, "remove it, and the same command measures that run again")


def _keeps_checkpoints(config, of_run) -> bool:
  return config.runner == "online" and of_run.checkpoint.every >= 0


def run_enumerable(config, workdir: pathlib.Path, runs: list[Run], checkpoint: str | int | None = None) -> dict:
  """Makes the runs on the toy, those of one method side by side; returns the programs' exact curves.

  Their last states are taken: `check` refuses another `checkpoint`.
  """
  del checkpoint
  problem = enumerable.make_problem(config.enumerable)
  for method in config.methods:
    of_method = [run for run in runs if run.method == method]
    configs = [config_of(config, run) for run in of_method]
    if not of_method:
      continue
    started = time.monotonic()
    params = None
    if config[method].steps:
      params = jax.block_until_ready(enumerable.train(configs, problem).params)
    seconds = (time.monotonic() - started) / len(of_method)
    for index, (run, of_run) in enumerate(zip(of_method, configs)):
      own = problem.params if params is None else jax.tree.map(lambda leaf, index=index: leaf[index], params)
      log_probs = problem.log_probs(own, of_run.sampling.temperature)
      figures = enumerable.figures(problem, log_probs, DRAWS)
      names = [" ".join(map(str, prompt)) for prompt in problem.prompts]
      _write(workdir, run, names, {name: values[:, None] for name, values in figures.items()}, seconds)
    print(f"{method}: {len(of_method)} runs in {time.monotonic() - started:.0f} s")
  return exact_curves(problem)


def exact_curves(problem: enumerable.Problem) -> dict[str, list[dict[str, float]]]:
  """Exact optima by program, from the uniform or the reference's own reward up to nearly the best: means of figures."""
  curves = {"QEMPO, exact": [], "QEMPO-KL, exact": [], "RLHF, exact": []}
  with jax.enable_x64(True):
    rewards = problem.rewards.astype(np.float64)
    reference = jax.nn.log_softmax(np.asarray(problem.log_probs(problem.params), np.float64), axis=-1)
    lowest = max(rewards.mean(), float((np.exp(reference) * rewards).sum(-1).mean()))
    for floor in np.linspace(lowest + 1e-3, 0.99, CURVE_POINTS):
      budget = exact.feasible_range(rewards, reference, min_reward=floor).kl_budget_at(0.5)
      solutions = {
        "QEMPO, exact": exact.solve_qempo(rewards, min_reward=floor, ref_log_probs=reference),
        "QEMPO-KL, exact": exact.solve_qempo_kl(rewards, reference, min_reward=floor, max_kl=float(budget)),
        "RLHF, exact": exact.solve_rlhf(rewards, reference, min_reward=floor),
      }
      for name, solution in solutions.items():
        figures = enumerable.figures(problem, solution.log_probs, DRAWS)
        curves[name].append({key: float(values.mean()) for key, values in figures.items()})
  return curves


def run_online(config, workdir: pathlib.Path, runs: list[Run], checkpoint: str | int | None = None) -> dict:
  """Makes the runs with a language model, one after another, online or on pairs.

  Seeds come last, so that a sweep that was cut short holds whole comparisons. Runs that keep checkpoints are measured at the
  one that `checkpoint` names (see `checkpoints.trained_params`), others in their last state.
  """
  if not runs:
    return {}
  shared = config[config.methods[-1]]
  policy = build_policy.policy(shared)
  for run in sorted(runs, key=lambda run: config.seeds.index(run.seed)):
    of_run = config_of(config, run)
    folder = _result(workdir, run).parent
    started = time.monotonic()
    params, of_checkpoint = policy.params, {}
    folder.mkdir(parents=True, exist_ok=True)
    if of_run.steps:
      made = build.run(of_run, policy, check=False)
      with Display(made.steps, title=run.name, constraints=made.constraints) as display:
        state = loop.train(made, folder, display)
      if _keeps_checkpoints(config, of_run):
        _free(state)  # the checkpoint takes its place
        params, what = build.trained_params(of_run, folder, policy, checkpoint)
        of_checkpoint = {"checkpoint": _asked_checkpoint(of_run, checkpoint), "policy": what}
      else:
        params = build_policy.as_policy(of_run)(state.params, policy.params)
    judge = registry.resolve(of_run.evaluation.reward) if of_run.evaluation.reward else None
    rows = build_data.evaluation_rows(of_run)
    evaluate = build.evaluator(of_run, policy, rows, build_data.reward(of_run), judge)
    rows = evaluate(params, method=run.method, seed=run.seed)
    workdirs.write(folder / "samples.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    names, figures = sampled_figures(rows)
    _write(workdir, run, names, figures, time.monotonic() - started, of_checkpoint)
    if of_run.steps:
      _free(state)  # room for the next run's
  return {}


def sampled_figures(rows: list[dict], embed: Callable | None = None) -> tuple[list[str], dict[str, np.ndarray]]:
  """(prompts, figures: [P, samples], or [P, 1] where a figure is one of a prompt's samples together); see `text_figures`."""
  by_prompt = {}
  for row in rows:
    prompt = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
    by_prompt.setdefault(f"{row['split']}: {prompt}", []).append(row)
  of = lambda get: np.array([[get(row) for row in group] for group in by_prompt.values()], float)
  groups = list(by_prompt.values())
  of_first = lambda name: np.array([[group[0]["exact"][name]] for group in groups], float)
  figures = {
    "reward": of(lambda row: row["reward"]),
    "entropy": of(lambda row: row["entropy"]),
    "kl": of(lambda row: row["log_prob"] - row["ref_log_prob"]),
    "length": of(lambda row: row["num_tokens"]),
    "truncation": of(lambda row: row["truncated"]),
  }
  if "judge" in rows[0]:
    figures["judge"] = of(lambda row: row["judge"])
  if not rows[0]["set_name"]:
    return list(by_prompt), figures | text_figures.figures(
      [[row["completion"] for row in group] for group in groups], embed
    )
  if all(group[0].get("exact") for group in groups):
    figures |= {f"exact/{name}": of_first(name) for name in groups[0][0]["exact"]}
  given = [[row["answer"] for row in group] for group in groups]
  sizes = [answers.set_size(group[0]["set_name"]) for group in groups]
  statistics = [functional.answer_statistics(of, set_size=size) for of, size in zip(given, sizes)]
  counts = np.array([(one.num_samples, one.num_acceptable) for one in statistics]).T
  figures |= {
    "good": of(lambda row: row["answer"] is not None),
    "effective_answers": np.array([[one.effective_answers] for one in statistics]),
    "coverage": np.array([[one.coverage] for one in statistics]),
  }
  for k in (k for k in SAMPLED_DRAWS if k <= counts[0].min()):
    figures[f"pass@{k}"] = solutions.pass_at_k(*counts, k=k)[:, None]
    distinct = [functional.distinct_k(of, k=k, equivalence=equivalence.exact) for of in given]
    figures[f"distinct@{k}"] = np.array(distinct)[:, None]
  return list(by_prompt), figures


def _asked_checkpoint(config, checkpoint: str | int | None) -> str:
  return str(checkpoint or checkpoints.default_checkpoint(build_constraints.constraints(config, aim=False)))


def _free(state) -> None:
  jax.tree.map(lambda leaf: leaf.delete(), state)


RUNNERS = {"enumerable": run_enumerable, "online": run_online}


def _write(workdir, run: Run, prompts, figures, seconds, more: dict[str, str] | None = None) -> None:
  values = {name: [[float(f"{x:.6g}") for x in row] for row in np.asarray(table)] for name, table in figures.items()}
  result = {
    "method": run.method,
    "point": [list(pair) for pair in run.point],
    "seed": run.seed,
    "seconds": round(seconds, 2),
    "prompts": prompts,
    "figures": values,
    **(more or {}),
  }
  path = _result(workdir, run)
  path.parent.mkdir(parents=True, exist_ok=True)
  workdirs.write(path, json.dumps(result) + "\n")


def _result(workdir: pathlib.Path, run: Run) -> pathlib.Path:
  return pathlib.Path(workdir) / "runs" / run.name / "result.json"
