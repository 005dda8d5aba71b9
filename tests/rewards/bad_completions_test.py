"""Every reward, by its short name: rubbish crashes none of them, and TRL's two forms of completions get equal scores."""

import math

import numpy as np
import pytest

from qempo_jax.errors import InputError
from qempo_jax.rewards import checked
from qempo_jax.rewards import open_list
from qempo_jax.rewards import registry
from qempo_jax.rewards import sentiment
from qempo_jax.rewards import texts

BAD = [
  "", " ", "\x00", "a\x00b", "\udc80\ud800", "\ufeff\u202e\u2028", "x" * 1_000_000, "a b " * 250_000, "(" * 5000,
  "\\boxed{" * 2000, "<think>" * 2000, None, 3, 1.5, b"bytes", [], {}, [None], [{}], [{"role": "assistant"}],
  [{"role": "assistant", "content": None}], [{"role": "assistant", "content": [{"type": "image"}]}], object(),
]  # fmt: skip
GOOD = ["Paris", "I think that Rome is a very good film.", "<think>a</think><answer>4</answer>", "4"]


def constant(prompts, completions, **columns):
  """A scorer for the pairwise reward."""
  return [None if text is None else 0.0 for text in texts.texts_of(completions)]


SPECS = {
  "compression": "compression",
  "countdown": "countdown",
  "distinctness": "distinctness",
  "format": r"format(r'.*a+\s*')",
  "length": "length(target=4, slack=2)",
  "math": "math(num_workers=1, timeout=30)",
  "ngram_distinctness": "ngram_distinctness(n=1)",
  "open_list": "open_list",
  "pairwise": "pairwise('tests.rewards.bad_completions_test.constant')",
  "repetition": "repetition(n=2)",
  "sentiment": "sentiment(path='{path}')",
  "tags": "tags(strict=False)",
}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
  path = tmp_path_factory.mktemp("sentiment") / "tiny.npz"
  sentiment.save(sentiment.Classifier(np.linspace(-1, 1, 64, dtype=np.float32), 0.1), path)
  return path


def test_every_short_name_is_here():
  assert set(SPECS) == set(registry.SHORT_NAMES)


@pytest.mark.parametrize("name", SPECS)
def test_rubbish_crashes_no_reward_and_both_forms_score_alike(name, classifier):
  if name == "math":
    pytest.importorskip("math_verify")
  reward = registry.resolve(SPECS[name].replace("{path}", str(classifier)))
  completions = GOOD + BAD
  count = len(completions)
  columns = {
    "answer": ["4"] * count,
    "target": [4] * count,
    "set_name": ["european_capital"] * count,
    "step": list(range(count)),
  }
  scores = checked.scores_or_nan(reward, ["p"] * count, completions, columns)
  assert scores.shape == (count,)
  text = [isinstance(completion, str) for completion in completions]
  assert np.isfinite(scores[: len(GOOD)]).all()
  assert np.isnan(scores[~np.array(text)]).all(), [c for c, s in zip(completions, scores) if s == s][-3:]

  prompts = [[{"role": "user", "content": "p"}]] * len(GOOD)
  messages = [[{"role": "assistant", "content": text}] for text in GOOD]
  columns = {key: values[: len(GOOD)] for key, values in columns.items()}
  plain = reward(["p"] * len(GOOD), GOOD, **columns)
  assert reward(prompts=prompts, completions=messages, **columns) == plain
  assert all(isinstance(value, float) for value in plain)
  if hasattr(reward, "close"):
    reward.close()


def test_open_list_in_both_forms():
  columns = {"set_name": ["european_capital"] * 3}
  messages = [[{"role": "assistant", "content": "Paris."}], [{"role": "assistant", "content": "x"}], None]
  assert open_list.open_list_reward(["p"] * 3, messages, **columns) == [1.0, 0.0, None]


def test_a_users_own_function_ports_unchanged():
  """As TRL's documentation writes them: keyword arguments, no prompts used, None allowed."""

  def reward_len(completions, **kwargs):
    return [-abs(20 - len(completion)) if completion else None for completion in completions]

  values = checked.scores_or_nan(reward_len, ["p", "p"], ["a" * 20, ""], {"ground_truth": ["x", "y"]})
  assert values[0] == 0.0 and math.isnan(values[1])


@pytest.mark.parametrize(
  ("text", "said"),
  [
    ("nonsense", "no reward 'nonsense'"),
    ("length", "needs a target"),
    ("length(target=)", "cannot be read"),
    ("length(targets=3)", "settings missing or too many"),
    ("length(target=__import__('os').getpid())", "cannot be read"),
    ("format", "settings missing"),
    ("no.such.module", "cannot be imported"),
    ("lambda: 0", "cannot be read"),
    ("length(**{'target': 3})", "cannot be read"),
    ("os.getcwd()", "makes a str"),
    ("", "cannot be read"),
  ],
)
def test_a_reward_that_cannot_be_made_is_named(text, said):
  with pytest.raises(InputError, match=said) as error:
    registry.resolve(text)
  assert "\n" not in str(error.value)


def test_a_dotted_path_is_the_function_itself():
  assert registry.resolve("tests.rewards.bad_completions_test.constant").__name__ == "constant"
  assert registry.resolve("open_list") is open_list.open_list_reward


@pytest.mark.parametrize("line", ["raise RuntimeError('no')", "import sys; sys.exit(0)", "def f(:"])
def test_a_reward_module_that_cannot_be_imported_is_one_line(tmp_path, monkeypatch, line):
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / "bad_rewards_module.py").write_text(line, encoding="utf-8")
  with pytest.raises(InputError, match="'bad_rewards_module.reward' cannot be imported") as caught:
    registry.resolve("bad_rewards_module.reward")
  assert "\n" not in str(caught.value)
