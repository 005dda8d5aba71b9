"""Batches of reward-model training: Bradley-Terry on pairs, measured on other prompts while training."""

from collections.abc import Iterator
import functools
import pathlib
import shutil
import time
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from experiments.batches.base import Batches
from experiments.batches.reward_rows import PARTS
from experiments.batches.reward_rows import RewardData
from experiments.batches.reward_rows import RewardRows
from experiments.batches.reward_rows import fingerprint
from experiments.plan import Policy
from qempo_jax import sharding
from qempo_jax.data import order as orders
from qempo_jax.evaluation import reward_report
from qempo_jax.models import reward_checkpoint
from qempo_jax.models import reward_head
from qempo_jax.rewards import reward_model
from qempo_jax.train import reward_step
from qempo_jax.train.online_step import Optimizers

_WINDOW = 16  # batches whose pairs are sorted by length together, which leaves less padding


class RewardSettings(NamedTuple):
  """Settings of a reward model's training; see configs/base.py."""

  trainable: str
  cache: bool
  pairs_per_step: int
  centring_weight: float
  validate_every: int
  measure_heldout: bool


class RewardPlan(NamedTuple):
  """The computation of a reward model's run.

  Attributes:
    steps: parameter updates.
    seed: of the run.
    model: with a head, before training.
    optimizers: the trained part's and that of no multiplier.
    first_state: the model's parameters -> the state before the first step.
    settings: of the training.
    bucket: multiple to which packed rows are rounded up, tokens.
    evaluation_seed: of the report's bootstrap.
  """

  steps: int
  seed: int
  model: Policy
  optimizers: Optimizers
  first_state: Any
  settings: RewardSettings
  bucket: int
  evaluation_seed: int


class RewardPairs(Batches):
  """The update of every step, with a measurement of the validation pairs after some of them."""

  def __init__(self, plan: RewardPlan, parts: dict[str, RewardData]):
    """Prepares; nothing is computed yet.

    Args:
      plan: the run's computation.
      parts: pairs of `PARTS`.
    """
    self._plan, self._parts, self.notes = plan, parts, []
    self._rows, self._lengths = RewardRows(parts, bucket=plan.bucket), parts["train"].lengths()
    self.same = {"pairs": fingerprint(parts)}
    size, count = plan.settings.pairs_per_step, len(self._lengths)
    self.order = orders.Order(count, batch_size=size, seed=plan.seed, lengths=self._lengths, window=_WINDOW)
    self.prepared_seconds = 0.0

  def prepare(self, workdir: pathlib.Path, note) -> None:
    """Places the frozen parameters, and keeps their output of every token where the settings want that."""
    plan = self._plan
    frozen = reward_head.split(plan.model.params, plan.model.config, plan.settings.trainable)[1]
    self._frozen = jax.device_put(frozen, sharding.tree_shardings(frozen, plan.model.mesh, reward_head.RULES))
    started = time.monotonic()
    if plan.settings.cache:
      self._rows.keep_frozen(plan.model, self._frozen, workdir, plan.settings.pairs_per_step, note)
    self.prepared_seconds = time.monotonic() - started

  def compile(self, shardings) -> None:
    """Sets up the jitted step and the jitted scorer; they are compiled at their first batches."""
    plan, mesh = self._plan, self._plan.model.mesh
    self._step = compile_step(plan, shardings, self._frozen)
    self._score = jax.jit(
      sharding.on_mesh(functools.partial(reward_step.pair_scores, config=plan.model.config), mesh),
      in_shardings=(
        shardings.params,
        _placed(self._frozen),
        sharding.rows_sharding(mesh, plan.settings.pairs_per_step),
      ),
      out_shardings=sharding.replicated(mesh),
    )

  def __call__(self, state, index: int) -> tuple[Any, dict[str, jax.Array], dict[str, float]]:
    """Update `index`, from 0: (the next state, metrics on the devices, metrics of the host)."""
    settings, indices = self._plan.settings, self.order.batch(index)
    batch = self._rows("train", indices, settings.pairs_per_step)
    state, metrics = self._step(state, self._frozen, batch)
    host = {"tokens": int(self._lengths[indices].sum())}
    done, every = index + 1, settings.validate_every
    if done == self._plan.steps or (every and done % every == 0):
      host |= _validation(self.scores(state.params, "validation"))
    return state, metrics, host

  def remarks(self, metrics: dict[str, float]) -> Iterator[str]:
    """Lines for the user about a step's metrics: the validation pairs, when they were measured."""
    if "validation/accuracy" in metrics:
      yield f"step {metrics['step']}: validation accuracy {metrics['validation/accuracy']:.3f}"

  def scores(self, trained, part: str) -> np.ndarray:
    """[N, 2] scores of the chosen and the rejected responses of every pair of a part."""
    size = self._plan.settings.pairs_per_step
    by_length = np.argsort(self._parts[part].lengths(), kind="stable")
    found = np.zeros((len(by_length), 2), np.float32)
    for start in range(0, len(by_length), size):
      chosen = by_length[start : start + size]
      found[chosen] = np.asarray(self._score(trained, self._frozen, self._rows(part, chosen, size)))[: len(chosen)]
    return found

  def results(self, trained) -> dict:
    """Figures of the pairs that were not trained on, each part measured as the settings say."""
    settings, seed = self._plan.settings, self._plan.evaluation_seed
    names = ("validation", "heldout") if settings.measure_heldout else ("validation",)
    found = {part: report(self.scores(trained, part), self._parts[part], seed) for part in names}
    found["train"] = {"pairs": len(self._lengths), "prompts": len(set(self._parts["train"].prompt_keys))}
    return found | {"dropped": {part: self._parts[part].dropped for part in PARTS}}

  def export(self, folder: pathlib.Path, trained) -> None:
    """Writes the model as a sequence classifier, in place of an earlier one."""
    model = self._plan.model
    shutil.rmtree(folder, ignore_errors=True)
    pad = reward_model.padding_id(model.tokenizer)
    params = reward_head.join(trained, self._frozen)
    reward_checkpoint.export(folder, params, model.config, pad_token_id=pad, tokenizer=model.tokenizer)


def report(scores: np.ndarray, pairs: RewardData, seed: int) -> dict:
  """Figures of all pairs of a part, and of each data set in it."""
  lengths = np.array([[len(ids) for ids in pair] for pair in pairs.responses])
  of = lambda chosen: reward_report.pair_report(scores[chosen], lengths[chosen], pairs.prompt_keys[chosen], seed=seed)
  by_source = {str(name): of(pairs.sources == name) for name in np.unique(pairs.sources)}
  return of(np.full(len(scores), True)) | {"by_source": by_source}


def compile_step(plan: RewardPlan, shardings, frozen):
  """The jitted step: the state placed by its shardings and donated."""
  step = functools.partial(
    reward_step.reward_step,
    config=plan.model.config,
    optimizer=plan.optimizers.policy,
    centring_weight=plan.settings.centring_weight,
  )
  return jax.jit(
    sharding.on_mesh(step, plan.model.mesh),
    in_shardings=(shardings, _placed(frozen), sharding.rows_sharding(plan.model.mesh, plan.settings.pairs_per_step)),
    out_shardings=(shardings, sharding.replicated(plan.model.mesh)),
    donate_argnums=0,
  )


def _placed(tree):
  return jax.tree.map(lambda leaf: leaf.sharding, tree)


def _validation(scores: np.ndarray) -> dict[str, float]:
  margins = scores[:, 0] - scores[:, 1]
  right = np.where(margins == 0, 0.5, margins > 0)
  loss = np.logaddexp(0, -margins)
  return {"validation/accuracy": float(right.mean()), "validation/loss": float(loss.mean())}
