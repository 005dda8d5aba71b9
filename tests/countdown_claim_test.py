"""The countdown claim's own forward pass against the library's, and its tables by hand on made-up runs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies import countdown_claim
from experiments.studies import countdown_claim_tables as tables
from experiments.studies import countdown_model
from experiments.studies import countdown_policy
from qempo_jax import token_stats
from qempo_jax.models import parameters
from qempo_jax.models import transformer


def test_scores_and_draws_are_those_of_the_library():
  config, rng = dataclasses.replace(countdown_model.CONFIG, num_layers=2), np.random.default_rng(0)
  params = parameters.init(jax.random.key(0), config, stddev=0.3)
  prompts, mask = jnp.asarray([[0, 3, 14], [2, 7, 14]]), jnp.asarray([[False, True, True], [True] * 3])
  owner, tokens = jnp.asarray([0, 1, 1]), jnp.asarray(rng.integers(0, config.vocab_size, (3, 5)))
  row = jnp.concatenate([prompts[owner], tokens], axis=1)
  valid = jnp.concatenate([mask[owner], jnp.ones((3, 5), bool)], axis=1)
  places = jnp.cumsum(valid, axis=1) - 1
  seen = transformer.causal_mask(places, valid)
  hidden = jax.jit(transformer.forward, static_argnums=1)(params, config, row, places, seen)
  logits = transformer.logits(hidden[:, 2:-1], transformer.unembedding(params), config)
  expected = token_stats.from_logits(logits / 1.3, tokens)
  found = jax.jit(countdown_policy.score, static_argnums=1)(params, config, prompts, mask, owner, tokens, 1.3)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)
  noise = jnp.asarray(rng.gumbel(size=(5, 2, 4, config.vocab_size)), jnp.float32)
  drawn = jax.jit(countdown_policy.draw, static_argnums=1)(params, config, prompts, mask, 0.7, noise)
  flat, of = drawn.reshape(8, 5), jnp.repeat(jnp.arange(2), 4)
  score = jax.jit(lambda token: countdown_policy.score(params, config, prompts, mask, of, flat.at[:, -1].set(token)))
  last = jnp.stack([score(token).log_prob[:, -1] for token in range(config.vocab_size)], axis=-1)
  np.testing.assert_array_equal(flat[:, -1], jnp.argmax(last / 0.7 + noise[-1].reshape(8, -1), axis=-1))


def test_a_run_is_taken_up_as_it_was_left(tmp_path):
  config = dataclasses.replace(countdown_model.CONFIG, num_layers=1)
  params = parameters.init(jax.random.key(0), config)
  point, one = countdown_claim.points()["qempo_c_1e-4"], {"train": [0.5], "heldout": [0.5]}
  make = lambda seed: countdown_claim.Run(point, seed, params, 600, tmp_path / f"a-seed{seed}.json", tmp_path)
  left = make(3)
  moved = lambda x: x + jnp.ones((), x.dtype) if jnp.issubdtype(x.dtype, jnp.number) else x
  left.state = jax.tree.map(moved, left.state)
  tokens = np.zeros((1, 3), np.int32)
  puzzles = countdown_policy.Puzzles(
    tokens, tokens > 0, tokens, tokens, tokens[0], tokens[0], tokens[0], {"train": [0]}
  )
  left.advance(0, config, params, 0, puzzles, lambda params, temperature=1.0: {"right": one, "distinct": one})
  taken = make(3)
  assert taken.rows == left.rows and make(4).rows == []
  plain = lambda state: state.replace(rng=jax.random.key_data(state.rng))
  jax.tree.map(np.testing.assert_array_equal, plain(taken.state), plain(left.state))


def _run(point, seed, ends):
  """A run whose figures are (P, distinct) at its end, on every one of two puzzles, and half of them at temperature 1.2."""
  figures = lambda right, distinct: {
    name: {split: [value] * 2 for split in ("train", "validation", "heldout")}
    for name, value in (("right", right), ("distinct", distinct), ("effective", distinct / 2))
  }
  rows = [{"step": 0} | figures(0.3, 9.0), {"step": 600, "measured": {"dual/quality/multiplier": 4.0}} | figures(*ends)]
  rows[-1]["temperatures"] = {"1.2": figures(ends[0] / 2, ends[1] * 2)}
  return {"point": {"floor": 0.85}, "seed": seed, "rows": rows}


@pytest.fixture
def runs():
  ends = {
    "grpo_beta0.04_1e-4": (0.9, 8.0), "grpo_beta0.04_3e-4": (0.89, 9.0), "grpo_beta0.25_1e-4": (0.5, 14.0),
    "qempo_c_1e-4": (0.85, 12.0),
  }  # fmt: skip
  return {name: [_run(name, seed, end) for seed in (0, 1)] for name, end in ends.items()}


def test_the_rule_takes_the_more_diverse_rate_of_those_with_the_reward(runs):
  assert tables.chosen_rates(runs)["grpo_beta0.04"] == "grpo_beta0.04_3e-4"
  for run in runs["grpo_beta0.04_3e-4"]:
    run["rows"][-1]["right"]["validation"] = [0.5, 0.5]
  assert tables.chosen_rates(runs)["grpo_beta0.04"] == "grpo_beta0.04_1e-4"


def test_the_rival_is_the_most_diverse_with_the_reward_at_any_temperature(runs):
  row = next(line for line in tables.matched(runs) if line.startswith("| held out | `qempo_c_1e-4` | GRPO |"))
  assert "`grpo_beta0.04_3e-4`, update 600 | 1.33 [1.33, 1.33] | 3.00 [3.00, 3.00] | -0.04 [-0.04, -0.04]" in row
  for run in runs["grpo_beta0.25_1e-4"]:  # hot, and right often enough
    run["rows"][-1]["temperatures"]["1.2"]["right"]["heldout"] = [0.84, 0.84]
  row = next(line for line in tables.matched(runs) if line.startswith("| held out | `qempo_c_1e-4` | GRPO |"))
  assert "`grpo_beta0.25_1e-4`, update 600, T = 1.2 | 0.43" in row
  assert "none reaches" in next(line for line in tables.matched(runs) if "UCPO" in line)


def test_intervals_redraw_seeds_and_puzzles():
  rng = np.random.default_rng(0)
  values = 3 * rng.normal(size=(3, 1)) + rng.normal(size=(1, 10))
  both, puzzles = tables.interval(values), tables.interval(np.repeat(values.mean(0, keepdims=True), 3, axis=0))
  assert both.high - both.low > 1.5 * (puzzles.high - puzzles.low)
  assert np.isnan(tables.interval(values[:1]).low)


def test_table_and_picture_hold_all_points(runs):
  lines = tables.points(runs)
  assert len(lines) == 2 + 1 + len(runs) and "| **qempo_c_1e-4** | 2 |" in lines[-1]
  assert tables.temperatures(runs)[2].startswith("| GRPO, beta .04 | 0.890 / 9.00 | 0.445 / 18.00 |")
  assert tables.summary(runs)[-1].startswith("| QEMPO-C, floor .85 | 0.85 [0.85, 0.85] | 12.00 [12.00, 12.00] |")
  assert tables.picture(runs)[:4] == b"\x89PNG"
