"""Every shape of row, told apart and read into prompt, chosen and rejected."""

import json

import pytest

from qempo_jax.data import formats
from qempo_jax.data.examples import RowError


def _say(role, content):
  return {"role": role, "content": content}


def _read(entry, needs=formats.PAIR):
  name, example = formats.read(entry, needs=needs)
  return name, example.row["prompt"], example.chosen, example.rejected


TALK = [_say("user", "q"), _say("assistant", "a"), _say("user", "again")]


@pytest.mark.parametrize(
  ("entry", "name", "prompt"),
  [
    ({"prompt": "p", "chosen": "yes", "rejected": "no"}, "preference, explicit prompt, standard", "p"),
    (
      {"prompt": [_say("user", "p")], "chosen": [_say("assistant", "yes")], "rejected": [_say("assistant", "no")]},
      "preference, explicit prompt, conversational",
      "p",
    ),
    ({"chosen": "The sky is yes", "rejected": "The sky is no"}, "preference, implicit prompt, standard", "The sky is"),
    (
      {"chosen": TALK + [_say("assistant", "yes")], "rejected": TALK + [_say("assistant", "no")]},
      "preference, implicit prompt, conversational",
      tuple(TALK),
    ),
    (
      {
        "prompt": "p",
        "chosen": [_say("user", "p"), _say("assistant", "yes")],
        "rejected": [_say("user", "p"), _say("assistant", "no")],
        "score_chosen": 8.0,
        "score_rejected": 5.0,
      },
      "UltraFeedback binarized",
      "p",
    ),
    (
      {
        "chosen": "\n\nHuman: q\n\nAssistant: a\n\nHuman: again\n\nAssistant: yes",
        "rejected": "\n\nHuman: q\n\nAssistant: a\n\nHuman: again\n\nAssistant: no",
      },
      "HH transcripts",
      tuple(TALK),
    ),
  ],
  ids=lambda value: value if isinstance(value, str) else None,
)
def test_preference_formats(entry, name, prompt):
  found = _read(entry)
  assert found[:2] == (name, prompt)
  assert [side.strip() for side in found[2:]] == ["yes", "no"]


def test_implicit_texts_are_cut_between_words_and_lose_nothing():
  entry = {"chosen": "Say it: blueish", "rejected": "Say it: blue"}
  _, prompt, chosen, rejected = _read(entry)
  assert prompt == "Say it:" and (prompt + chosen, prompt + rejected) == (entry["chosen"], entry["rejected"])


def test_scores_and_other_fields_are_columns():
  entry = {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 8.5, "tags": ["x"]}
  row = formats.read(entry, needs=formats.PAIR)[1].row
  assert row == {"split": "train", "prompt": "p", "score_chosen": 8.5, "tags": ["x"]}


@pytest.mark.parametrize(
  ("entry", "found"),
  [
    ({"prompt": "p", "completion": "c"}, ("completion", "p", "c", None)),
    ({"messages": TALK[:2]}, ("conversation", "q", "a", None)),
    ({"question": "1+1?", "answer": "It is 2\n#### 2"}, ("GSM8K", "1+1?", "It is 2\n#### 2", None)),
    ({"problem": "$1+1$?", "solution": r"$\boxed{2}$", "answer": "2"}, ("MATH", "$1+1$?", r"$\boxed{2}$", None)),
    ({"text": "one two three four five six seven eight nine ten"}, None),
  ],
)
def test_completions(entry, found):
  expected = found or ("text", "one two three four five six seven eight", " nine ten", None)
  assert _read(entry, formats.COMPLETION) == expected
  with pytest.raises(RowError, match='no "rejected"'):
    _read(entry)


def test_prompts_keep_every_column():
  entry = {"prompt": "p", "chosen": True, "answer": 3}  # fields of other meaning may have any type
  assert formats.read(entry, needs=formats.PROMPT)[1] == (
    {"split": "train", "prompt": "p", "chosen": True, "answer": 3},
    None,
    None,
  )
  turns = formats.read({"turns": ["first", "second"], "category": "x"}, needs=formats.PROMPT)
  assert (
    turns[0] == "questions in turns"
    and turns[1].row["prompt"] == "first"
    and turns[1].row["turns"] == ["first", "second"]
  )


@pytest.mark.parametrize(
  ("entry", "reason"),
  [
    ({}, "keys are none"),
    ({"x": 1, "y": 2}, "its keys are x, y"),
    ({"prompt": None, "chosen": "a", "rejected": "b"}, '"prompt" that is null'),
    ({"prompt": [], "chosen": "a", "rejected": "b"}, '"prompt" that is an empty list'),
    ({"prompt": [_say("tool", "p")], "chosen": "a", "rejected": "b"}, "role 'tool'"),
    ({"prompt": [_say("user", " ")], "chosen": "a", "rejected": "b"}, 'empty "prompt, message 1"'),
    ({"prompt": [_say("user", "p"), _say("system", "s")], "chosen": "a", "rejected": "b"}, "not the first"),
    ({"prompt": "p", "chosen": "a" * 2_000_001, "rejected": "b"}, "2,000,001 characters"),
    ({"prompt": "p", "chosen": [1, -2], "rejected": "b"}, "message 1 is no object"),
    ({"prompt": "p", "completion": "c", "label": False}, "labelled false"),
    ({"chosen": TALK, "rejected": TALK}, "same text"),
    ({"chosen": TALK, "rejected": TALK[:2]}, "differ before their last"),
    ({"chosen": "\n\nHuman: q\n\nAssistant:", "rejected": "\n\nHuman: q\n\nAssistant: b"}, "empty turn"),
    ({"chosen": "\n\nHuman: q\n\nHuman: r\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}, "alternate"),
    (
      {
        "prompt": "other",
        "chosen": [_say("user", "p"), _say("assistant", "a")],
        "rejected": [_say("user", "p"), _say("assistant", "b")],
      },
      "conversations do not hold",
    ),
  ],
)
def test_a_row_that_does_not_fit_says_why(entry, reason):
  with pytest.raises(RowError, match=reason):
    _read(entry, formats.COMPLETION if "label" in entry else formats.PAIR)


ASKED = {"system": "Be kind.", "question": "Where?", "chosen": "The city is Paris.", "rejected": "The city is Rome."}
SAY_KIND = (_say("system", "Be kind."), _say("user", "Where?"))


@pytest.mark.parametrize(
  ("entry", "prompt"),
  [
    (ASKED, SAY_KIND),
    ({"prompt": "Where?", "chosen": "a", "rejected": "b", "system_prompt": "Be kind."}, SAY_KIND),
    ({"instruction": "Say:", "input": "hi", "chosen": "a", "rejected": "b"}, "Say:\nhi"),
    ({"query": "q", "chosen": [_say("assistant", "a")], "rejected": [_say("assistant", "b")]}, "q"),
    ({"question": "Where is it?", "chosen": "Where is it? Here", "rejected": "Where is it? There"}, "Where is it?"),
    (
      {"prompt": json.dumps([_say("user", "hi")]), "chosen": json.dumps([_say("assistant", "a")]), "rejected": "b"},
      "hi",
    ),
    (
      {
        "conversations": [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "Where?"}],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
      },
      SAY_KIND,
    ),
    (
      {
        "prompt": [
          _say("developer", "Be kind."),
          _say("user", [{"type": "text", "text": "Whe"}, {"type": "text", "text": "re?"}]),
        ],
        "chosen": "a",
        "rejected": "b",
      },
      SAY_KIND,
    ),
  ],
)
def test_every_place_of_a_prompt_is_read(entry, prompt):
  _, found, chosen, rejected = _read(entry)
  assert found == prompt and chosen != rejected


def test_one_response_formats():
  share = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
  for entry in (
    {"conversations": share},
    {"conversations": json.dumps(share)},
    {"instruction": "q", "input": "", "output": "a"},
  ):
    assert _read(entry | {"label": 1.0}, formats.COMPLETION)[1:] == ("q", "a", None)
  text = "def f():\n    return 1\n\nprint(f())\n# then\n# some more words\nx = 2\n"
  _, prompt, rest, _ = _read({"text": text}, formats.COMPLETION)
  assert prompt + rest == text and prompt.endswith("# then\n#")
  assert _read({"text": "今天天气很好，我们去公园"}, formats.COMPLETION)[1:3] == ("今天天气很好，我们", "去公园")


@pytest.mark.parametrize(
  ("further", "reason"),
  [
    ({"prompt": [_say("user", "p") | {"tool_calls": [{}]}]}, "'tool_calls'"),
    (
      {"prompt": [_say("user", "p"), _say("assistant", "a") | {"reasoning_content": "x"}, _say("user", "p")]},
      "'reasoning_content'",
    ),
    ({"prompt": [_say("user", [{"type": "image_url", "image_url": "x"}])]}, "'image_url'"),
    ({"chosen": [_say("assistant", "a") | {"weight": 0}]}, "'weight'"),
    ({"tools": [{"name": "f"}]}, 'has "tools"'),
    ({"documents": [{"title": "t", "text": "x"}]}, 'has "documents"'),
    ({"functions": [{"name": "f"}]}, 'has "functions"'),
    ({"images": ["x.png"]}, 'has "images"'),
    ({"chat_template_kwargs": {"tools": []}}, "'tools', which is no variable"),
    ({"chat_template_kwargs": {"add_generation_prompt": True}}, "'add_generation_prompt', which is no variable"),
    ({"chat_template_kwargs": ["enable_thinking"]}, "not an object"),
    ({"input": "the text"}, '"input" that its prompt does not hold'),
    ({"prompt": [_say("system", "s"), _say("user", "p")], "system": "t"}, '"system" other than'),
    ({"prompt": "[{'role': 'user', 'content': 'hi'}]"}, "not JSON"),
  ],
)
def test_what_would_change_a_row_is_refused_by_name(further, reason):
  row = {"prompt": "p", "chosen": "a", "rejected": "b"}
  nothing = {
    name: None if isinstance(value, str) else type(value)() for name, value in further.items() if name not in row
  }
  assert _read(row | nothing)[1] == "p"
  with pytest.raises(RowError, match=reason):
    _read(row | further)


@pytest.mark.parametrize("label", [False, 0, 0.0, "bad", 2, float("nan")])
def test_a_bad_completion_is_no_example(label):
  for entry in ({"prompt": "p", "completion": "c"}, {"messages": TALK[:2]}):
    with pytest.raises(RowError, match="label"):
      _read(entry | {"label": label}, formats.COMPLETION)
    assert _read(entry | {"label": True, "kto_tag": None}, formats.COMPLETION)[2]


@pytest.mark.parametrize("text", ['{"role": "user", "content": "x"}', '[{"value": 1}] is JSON', "[1, 2]"])
def test_json_that_is_no_conversation_stays_a_text(text):
  assert _read({"prompt": text, "chosen": text + ".", "rejected": "b"})[1:3] == (text, text + ".")
