"""The reward-model loop: Bradley-Terry on pairs, measured on other prompts, exported as a sequence classifier."""

import contextlib
import functools
import json
import pathlib
import shutil
import time

import jax
import numpy as np

from experiments import builders
from experiments import compilations
from experiments import reward_builders
from experiments import workdir as workdirs
from experiments.loops import metrics_file
from experiments.loops import profiling
from experiments.loops import reward_pairs
from experiments.loops import runs
from experiments.loops import saving
from experiments.loops import wandb_log
from qempo_jax import sharding
from qempo_jax.evaluation import reward_report
from qempo_jax.models import reward_checkpoint
from qempo_jax.models import reward_head
from qempo_jax.rewards import reward_model
from qempo_jax.train import reward_step

RESULTS = "results.json"


def check(config, model: builders.Policy, parts) -> str:
  """Checks what is trained; returns a line for the user."""
  reward_head.split(model.params, model.config, config.reward_model.trainable)
  counts = ", ".join(f"{len(parts[part].prompts)} {part}" for part in reward_builders.PARTS)
  dropped = sum(parts[part].dropped for part in reward_builders.PARTS)
  return f"Pairs: {counts}; {dropped} too long, left out; trainable: {config.reward_model.trainable}"


def train(config, workdir: pathlib.Path, model: builders.Policy, parts, display) -> dict:
  """Trains from the model, or from the newest checkpoint; writes metrics.jsonl, model/ and results.json.

  Args:
    config: a complete config.
    workdir: where everything goes.
    model: what is trained, with a head.
    parts: pairs of `reward_builders.PARTS`.
    display: gets every step's metrics.

  Returns:
    What results.json holds.
  """
  # 1. What is trained, what stays, and the pairs.
  r = config.reward_model
  trained, frozen = reward_head.split(model.params, model.config, r.trainable)
  place = lambda tree: jax.device_put(tree, sharding.tree_shardings(tree, model.mesh, reward_head.RULES))
  frozen = place(frozen)
  started = time.monotonic()
  batches = reward_pairs.Batches(config, model, parts, frozen, workdir, display.note)
  prepared = time.monotonic() - started

  # 2. The state and its compiled step.
  optimizers = builders.optimizer_pair(config)
  state = builders.initial_state(config, trained, optimizers)
  shardings = sharding.tree_shardings(state, model.mesh, reward_head.RULES)
  state = jax.device_put(state, shardings)
  step = compile_step(config, model, optimizers, shardings, frozen)
  score = Scorer(config, model, batches, parts, shardings.params, frozen)

  # 3. Where an earlier run stopped.
  mark = {"pairs": reward_builders.fingerprint(parts)}
  saver = saving.Saver(config, workdir, model, display.note, same=mark)
  state, _ = saver.restore(state)
  first = int(state.step)
  log = wandb_log.also(config, runs.MetricsLog(workdir / "metrics.jsonl", keep=first))

  # 4. The loop.
  lengths = parts["train"].lengths()
  with saver, contextlib.closing(log), compilations.Counter() as compiled:
    for index in profiling.traced(range(first, config.steps), config, workdir, display.note):
      started = time.monotonic()
      chosen = reward_pairs.batch_indices(index, r.pairs_per_step, lengths, config.seed)
      state, metrics = step(state, frozen, batches("train", chosen, r.pairs_per_step))
      metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
      seconds = time.monotonic() - started
      done = index + 1
      metrics |= {"step": done, "seconds": seconds, "tokens_per_second": int(lengths[chosen].sum()) / seconds}
      metrics |= saver.count(metrics) | {"compilations": compiled.take()}
      if done == config.steps or (r.validate_every and done % r.validate_every == 0):
        metrics |= _validation(score(state.params, "validation"))
        display.note(f"step {done}: validation accuracy {metrics['validation/accuracy']:.3f}")
      log.write(metrics)
      display.step(done, metrics)
      saver.after_step(state, log)

  # 5. The model for others, and what it is worth on prompts that it has not seen.
  results = {"seed": config.seed, "steps": config.steps, **mark, "prepared_seconds": prepared}
  results["training_seconds"] = _training_seconds(workdir)
  names = ("validation", "heldout") if r.measure_heldout else ("validation",)
  results |= {part: report(score(state.params, part), parts[part], config.evaluation.seed) for part in names}
  results["train"] = {"pairs": len(lengths), "prompts": len(set(parts["train"].prompt_keys))}
  results["dropped"] = {part: parts[part].dropped for part in reward_builders.PARTS}
  results["config"] = json.loads(config.to_json_best_effort())
  workdirs.write_atomically(workdir / RESULTS, json.dumps(results, indent=1) + "\n")
  export(workdir, model, reward_head.join(state.params, frozen))
  return results


def report(scores: np.ndarray, pairs: reward_builders.Pairs, seed: int) -> dict:
  """Figures of all pairs of a part, and of each data set in it."""
  lengths = np.array([[len(ids) for ids in pair] for pair in pairs.responses])
  of = lambda chosen: reward_report.pair_report(scores[chosen], lengths[chosen], pairs.prompt_keys[chosen], seed=seed)
  by_source = {str(name): of(pairs.sources == name) for name in np.unique(pairs.sources)}
  return of(np.full(len(scores), True)) | {"by_source": by_source}


def export(workdir: pathlib.Path, model: builders.Policy, params) -> None:
  """Writes `workdir/model`, in place of an earlier one."""
  target = workdir / reward_model.EXPORT_FOLDER
  shutil.rmtree(target, ignore_errors=True)
  pad = reward_model.padding_id(model.tokenizer)
  reward_checkpoint.export(target, params, model.config, pad_token_id=pad, tokenizer=model.tokenizer)


class Scorer:
  """Scores every pair of a part."""

  def __init__(self, config, model: builders.Policy, batches, parts, trained_shardings, frozen):
    """Compiles nothing yet."""
    self._batches, self._parts, self._frozen = batches, parts, frozen
    self._size = config.reward_model.pairs_per_step
    self._score = jax.jit(
      sharding.on_mesh(functools.partial(reward_step.pair_scores, config=model.config), model.mesh),
      in_shardings=(trained_shardings, _placed(frozen), runs.split(model.mesh, self._size)),
      out_shardings=sharding.replicated(model.mesh),
    )

  def __call__(self, trained, part: str) -> np.ndarray:
    """[N, 2] scores of the chosen and the rejected responses."""
    order = np.argsort(self._parts[part].lengths(), kind="stable")
    found = np.zeros((len(order), 2), np.float32)
    for start in range(0, len(order), self._size):
      chosen = order[start : start + self._size]
      scores = self._score(trained, self._frozen, self._batches(part, chosen, self._size))
      found[chosen] = np.asarray(scores)[: len(chosen)]
    return found


def compile_step(config, model: builders.Policy, optimizers, shardings, frozen):
  """The jitted step: the state placed by its shardings and donated."""
  step = functools.partial(
    reward_step.reward_step,
    config=model.config,
    optimizer=optimizers.policy,
    centring_weight=config.reward_model.centring_weight,
  )
  return jax.jit(
    sharding.on_mesh(step, model.mesh),
    in_shardings=(shardings, _placed(frozen), runs.split(model.mesh, config.reward_model.pairs_per_step)),
    out_shardings=(shardings, sharding.replicated(model.mesh)),
    donate_argnums=0,
  )


def _placed(tree):
  return jax.tree.map(lambda leaf: leaf.sharding, tree)


def _validation(scores: np.ndarray) -> dict[str, float]:
  margins = scores[:, 0] - scores[:, 1]
  right = np.where(margins == 0, 0.5, margins > 0)
  loss = np.logaddexp(0, -margins)
  return {"validation/accuracy": float(right.mean()), "validation/loss": float(loss.mean())}


def _training_seconds(workdir: pathlib.Path) -> float:
  """Of all steps, those before a resumption too."""
  return sum(row["seconds"] for row in metrics_file.read(workdir / metrics_file.NAME))
