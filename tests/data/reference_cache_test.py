"""Log-probs are computed once, never found for another model, template or example, and verified."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import build
from experiments.batches import pairs
from qempo_jax.data import pair_tokens
from qempo_jax.data import reference_cache
from qempo_jax.errors import InputError
from tests.loops import toy


@dataclasses.dataclass
class _Tokenizer:
  chat_template: str = "a"
  eos: str = "</s>"

  @property
  def special_tokens_map(self):
    return {"eos_token": self.eos}

  def get_vocab(self):
    return {"</s>": 0, "x": 1}


def _pairs(*responses):
  return pair_tokens.PairTokens([{}] * len(responses), [[5, 6]] * len(responses), [(r, (9,)) for r in responses], 0, 0)


def _keys(*responses, model="m", tokenizer="t", temperature=1.0):
  settings = {"temperature": temperature}
  return reference_cache.example_keys(_pairs(*responses), model=model, tokenizer=tokenizer, settings=settings)


class Scorer:
  """Returns -index - 1 for every example and records the requested indices."""

  def __init__(self):
    self.asked = []

  def __call__(self, indices):
    self.asked.append(list(indices))
    return np.array([[-index - 1.0, -0.5] for index in indices])


def test_each_example_is_scored_once(tmp_path):
  path, score = tmp_path / "deep" / "reference.npz", Scorer()
  first, computed = reference_cache.get_or_compute(path, _keys((1,), (2, 3)), score)
  assert computed == 2 and first.tolist() == [[-1.0, -0.5], [-2.0, -0.5]]
  again, computed = reference_cache.get_or_compute(path, _keys((2, 3), (4,), (1,)), score)
  assert computed == 1 and score.asked == [[0, 1], [1]]  # only the new one
  assert again.tolist() == [[-2.0, -0.5], [-2.0, -0.5], [-1.0, -0.5]]
  assert [file.name for file in path.parent.iterdir()] == ["reference.npz"]


def test_keys_hold_everything_a_log_prob_depends_on():
  keys = [
    _keys((1, 2)),
    _keys((1,)),
    _keys((1, 2), model="n"),
    _keys((1, 2), tokenizer="u"),
    _keys((1, 2), temperature=0.9),
  ]
  assert len({key.tobytes() for key in keys}) == 5 and keys[0].shape == (1, 32)
  assert _keys((1, 2)).tobytes() == keys[0].tobytes()


def test_model_and_tokenizer_hashes_see_every_part():
  params = {"a": jnp.arange(4.0), "b": jnp.ones((2, 2), jnp.bfloat16)}
  one = reference_cache.model_hash(params, "config")
  assert one == reference_cache.model_hash(dict(reversed(params.items())), "config")
  others = [
    reference_cache.model_hash(params | {"a": params["a"].at[3].add(1e-6)}, "config"),
    reference_cache.model_hash(params | {"a": params["a"].reshape(2, 2)}, "config"),
    reference_cache.model_hash(params | {"b": params["b"].astype(jnp.float32)}, "config"),
    reference_cache.model_hash(params, "other config"),
  ]
  assert len({one, *others}) == 5
  names = [reference_cache.tokenizer_hash(t) for t in (_Tokenizer(), _Tokenizer("b"), _Tokenizer(eos="x"))]
  assert len(set(names)) == 3 and names[0] == reference_cache.tokenizer_hash(_Tokenizer())


def test_a_damaged_file_is_refused(tmp_path):
  path = tmp_path / "reference.npz"
  reference_cache.get_or_compute(path, _keys((1,)), Scorer())
  with np.load(path) as stored:
    parts = dict(stored)
  np.savez(path, **(parts | {"values": parts["values"] + 1e-3}))
  with pytest.raises(InputError, match="do not match their checksum; remove the file"):
    reference_cache.get_or_compute(path, _keys((1,)), Scorer())
  path.write_bytes(b"short")
  with pytest.raises(InputError, match="reference.npz cannot be read"):
    reference_cache.get_or_compute(path, _keys((1,)), Scorer())


def test_values_that_are_not_finite_are_never_kept(tmp_path):
  path = tmp_path / "reference.npz"
  with pytest.raises(InputError, match="example 1 are not finite"):
    reference_cache.get_or_compute(path, _keys((1,), (2,)), lambda indices: np.array([[0.0, 0.0], [np.nan, 0.0]]))
  assert not path.exists()


def test_a_run_scores_the_reference_once_and_a_second_run_reads_it(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv("QEMPO_CACHE_DIR", str(tmp_path))
  config = toy.config(tmp_path)
  config.offline.loss, config.offline.pairs_per_step, config.steps = "dpo", 2, 3
  policy = toy.policy()._replace(tokenizer=_Tokenizer())
  examples = pair_tokens.PairTokens([{}] * 5, [[1, 2]] * 5, [((i, 0), (3, i, 0)) for i in range(1, 6)], 0, 0)

  def prepared(cached):
    of_run = build.plan(config, policy)
    made = pairs.Pairs(of_run, examples, encode=None, measure=None, cached=cached, chosen_fall=0.0)
    made.prepare(tmp_path, print)
    return made

  plain, first = prepared(cached=False), prepared(cached=True)
  monkeypatch.setattr(pairs.Pairs, "_score", lambda *_: pytest.fail("scored the reference again"))
  second = prepared(cached=True)
  for step in range(3):
    values = [np.asarray(batches.make(step)[0].ref_log_probs) for batches in (plain, first, second)]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-6)
    np.testing.assert_array_equal(values[1], values[2])
  assert [line.split(":")[1].split(",")[0] for line in capsys.readouterr().out.splitlines()] == [
    " 5 computed",
    " 0 computed",
  ]
