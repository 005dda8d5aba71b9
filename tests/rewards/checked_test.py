"""Calls of users' reward functions: TRL's arguments, what may be returned, and completions that nothing could judge."""

import collections
import re
import types

import numpy as np
import pytest

from experiments import samples
from qempo_jax.data import formats
from qempo_jax.data.examples import Message
from qempo_jax.errors import InputError
from qempo_jax.rewards import checked

STRING = "2+2?"
TALK = (Message(role="system", content="Be brief."), Message(role="user", content=STRING))


def _scores(values):
  return checked.scores_or_nan(lambda prompts, completions: values, ["p", "p"], ["a", "b"], {})


def _seen(rows, texts):
  """Everything that a user's function gets for two samples of each row."""
  seen = {}
  function = lambda **given: seen.update(given) or [0.0] * len(given["completions"])
  ids = [[np.array([7, 9]), np.array([8])]] * len(rows)
  samples.group_rewards(function, samples.Samples(rows, [[1]] * len(rows), ids, texts, None))
  return seen


def test_conversational_rows_hand_over_messages_and_others_texts():
  rows = [{"prompt": STRING, "answer": "4"}, {"prompt": TALK, "answer": "5"}]
  seen = _seen(rows, [["4", "5"], ["four", ""]])
  say = lambda text: [{"role": "assistant", "content": text}]
  assert seen["prompts"] == [STRING, STRING, [dict(m) for m in TALK], [dict(m) for m in TALK]]
  assert all(type(message) is dict for prompt in seen["prompts"][2:] for message in prompt)
  assert seen["completions"] == ["4", "5", say("four"), say("")]
  assert seen["completion_ids"] == [[7, 9], [8], [7, 9], [8]] and seen["answer"] == ["4", "4", "5", "5"]


def test_one_user_message_stays_a_conversation_for_rewards_and_is_its_text_elsewhere():
  row = formats.read({"prompt": [{"role": "user", "content": STRING}]}, needs=formats.PROMPT)[1].row
  assert row["prompt"] == STRING and hash(row["prompt"]) == hash(STRING)
  seen = _seen([row], [["4", "5"]])
  assert seen["prompts"][0] == [{"role": "user", "content": STRING}] and seen["completions"][1][0]["content"] == "5"


def test_functions_in_the_manner_of_trls_guide_run_as_they_are():
  def longer(completions, **kwargs):
    return [float(len(one[0]["content"])) for one in completions]

  def tokens(completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]

  def tagged(completions, **kwargs):
    return [1.0 if re.match(r"<think>.*?</think>$", one[0]["content"]) else 0.0 for one in completions]

  def only_maths(prompts, completions, task, **kwargs):
    return [1.0 if kind == "maths" else None for kind in task]

  rows = [{"prompt": TALK, "task": "maths"}, {"prompt": TALK, "task": "code"}]
  found = samples.Samples(rows, [[1]] * 2, [[[1, 2], [3]]] * 2, [["<think>x</think>", "no"]] * 2, None)
  of = lambda function: samples.group_rewards(function, found).tolist()
  assert of(longer) == [[16, 2], [16, 2]] and of(tokens) == [[2, 1], [2, 1]] and of(tagged) == [[1, 0], [1, 0]]
  np.testing.assert_array_equal(of(only_maths), [[1, 1], [np.nan, np.nan]])


@pytest.mark.slow
def test_trls_own_trainer_hands_over_the_same():
  grpo = pytest.importorskip("trl.trainer.grpo_trainer")
  torch = pytest.importorskip("torch")
  theirs, rows = {}, [{"prompt": [dict(m) for m in TALK], "answer": "4"}]
  function = lambda **given: theirs.update(given) or [0.0] * len(given["completions"])
  say = [[{"role": "assistant", "content": text}] for text in ("4", "5")]
  trainer = types.SimpleNamespace(
    accelerator=types.SimpleNamespace(device="cpu", gather=lambda x: x, is_main_process=True),
    args=types.SimpleNamespace(report_to=[]), state=types.SimpleNamespace(global_step=0), environments=None,
    _log_completion_extra=None, _log_metric=None,
    reward_funcs=[function], reward_processing_classes=[None], reward_func_names=["f"],
  )  # fmt: skip
  call = getattr(grpo.GRPOTrainer._calculate_rewards, "__wrapped__", grpo.GRPOTrainer._calculate_rewards)
  rewards = call(trainer, rows * 2, [rows[0]["prompt"]] * 2, say, [[7, 9], [8]])
  assert torch.equal(rewards.cpu(), torch.zeros(2, 1))
  ours = _seen([{"prompt": TALK, "answer": "4"}], [["4", "5"]])
  assert set(theirs) - set(ours) == {"trainer_state", "log_extra", "log_metric"}
  assert {name: theirs[name] for name in ours} == ours


@pytest.mark.parametrize(
  "values",
  [
    {0: 1.0, 1: 0.0},
    collections.Counter("ab"),
    {1.0, 0.0},
    frozenset((1.0, 2.0)),
    {0: 1.0}.keys(),
    "12",
    b"12",
    1.0,
    np.float32(1),
    None,
  ],
)
def test_what_is_no_list_of_scores_is_refused(values):
  with pytest.raises(InputError, match="returned .*; it must return a list|iteration over a 0-d"):
    _scores(values)


@pytest.mark.parametrize("value", [1e300, -1e39, float("inf"), float("nan"), "1.0", 10**400, 1j, [1.0]])
def test_a_score_beyond_float32_or_no_number_is_refused_with_its_completion(value):
  with pytest.raises(InputError, match="for completion 1 \\('b'\\)"):
    _scores([0.0, value])


def test_scores_of_other_libraries_and_none_pass():
  assert _scores([np.float64(0.5), True]).tolist() == [0.5, 1.0] and _scores((3.4e38, -1)).tolist()[1] == -1.0
  assert np.isnan(_scores([None, 1.0])).tolist() == [True, False]


@pytest.mark.parametrize("name", ["prompts", "completions"])
def test_a_column_with_a_reserved_name_is_named(name):
  with pytest.raises(InputError, match=f"column '{name}'.*rename it"):
    checked.scores(lambda **given: [0.0], ["p"], ["a"], {name: [1]})
  with pytest.raises(InputError, match=f"column '{name}'.*rename it"):
    checked.check_columns(lambda prompts, completions, **columns: [], {name})


def test_what_could_not_be_judged_counts_as_the_least_reward():
  of = lambda values, **options: checked.least_for_unscored(np.array(values, float), **options).tolist()
  nan = np.nan
  assert of([1, nan, nan, nan]) == [1, 0, 0, 0]
  assert of([[3, nan], [-2, 5]]) == [[3, -2], [-2, 5]] and of([nan, nan]) == [0, 0]
  assert of([4, nan], least=1.0) == [4, 1] and of([4, 2]) == [4, 2]
