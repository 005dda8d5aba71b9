"""Every key that a run logs is in docs/guides/metrics.md, and the page has no others."""

import json
import re

import jax.numpy as jnp
import pytest

from qempo_jax.train import reward_step
from tests import pages
from tests.loops import offline_toy
from tests.loops import toy

PAGE = (pages.ROOT / "docs" / "guides" / "metrics.md").read_text(encoding="utf-8")
KEYS = [
  key for line in PAGE.splitlines() if line.startswith("| `") for key in re.findall(r"`([\w/]+)`", line.split("|")[1])
]
# Keys of rewards that count something, and of tasks that list their right answers.
ELSEWHERE = {
  "reward_counts/KIND", "heldout/SPLIT/exact/acceptable", "heldout/SPLIT/exact/effective_answers", "validation/accuracy",
  "validation/loss",
}  # fmt: skip


def _matches(documented: str, logged: str) -> bool:
  return re.fullmatch(re.sub(r"[A-Z]{2,}", "[^/]+", documented), logged) is not None


def _logged(folder, config) -> set[str]:
  toy.train(config, folder)
  return {key for line in (folder / "metrics.jsonl").read_text().splitlines() for key in json.loads(line)}


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
  online, offline = (tmp_path_factory.mktemp(name) for name in ("online", "offline"))
  config = toy.small(toy.config(online))
  config.steps, config.method, config.sampling.stale_steps = 2, "qempo_c", 1
  config.constraints.quality.bound = config.constraints.coherence.threshold = 0.5
  config.evaluation.every, config.evaluation.splits, config.evaluation.exact = 2, (config.data.source,), False
  config.evaluation.samples_per_prompt = config.evaluation.prompts_per_batch = 4
  pairs = toy.small(offline_toy.config(offline, count=16, scale=4.0))
  pairs.steps, pairs.offline.loss, pairs.constraints.quality.bound = 2, "qempo_kl", 0.5
  scores = reward_step.pair_metrics(jnp.ones((2, 2)), jnp.ones(2))
  return _logged(online, config) | _logged(offline, pairs) | set(scores)


def test_every_logged_key_is_in_the_dictionary(logged):
  assert len(logged) > 30
  assert sorted(key for key in logged if not any(_matches(documented, key) for documented in KEYS)) == []


def test_the_dictionary_has_no_other_keys(logged):
  assert len(KEYS) == len(set(KEYS)) + 2  # accuracy and margin are of pairs and of reward models
  assert {key for key in KEYS if not any(_matches(key, name) for name in logged)} == ELSEWHERE
