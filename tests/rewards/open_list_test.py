"""Open-list tasks: sets, wordings, splits, what counts as one acceptable answer, and the reward."""

import pytest

from qempo_jax.errors import InputError
from qempo_jax.rewards import open_list
from qempo_jax.rewards import open_list_sets


def test_sets_are_many_large_and_without_repeats():
  assert len(open_list.SETS) >= 14
  for name, answers in open_list.SETS.items():
    assert len(answers.items) >= 10, name
    assert len(set(answers.items)) == len(answers.items), name
  assert sum(len(answers.items) >= 25 for answers in open_list.SETS.values()) >= 14
  sizes = {name: len(open_list.SETS[name].items) for name in ("us_state", "month", "chemical_element")}
  assert sizes == {"us_state": 50, "month": 12, "chemical_element": 118}


@pytest.mark.parametrize("set_name", list(open_list.SETS))
def test_every_written_name_is_accepted_as_its_item(set_name):
  for entry in open_list_sets.SOURCES[set_name].text.split(","):
    names = [name.strip() for name in entry.split("=")]
    for name in names:
      for form in (name, name.upper(), f" {name}. ", f"**{name}**", f'"{name}."', f"The {name}!"):
        assert open_list.parse_answer(form, set_name) == names[0], form


@pytest.mark.parametrize("completion", ["Ohio\n", "Ohio\nTexas", "\nOhio"])
def test_a_line_break_is_refused(completion):
  assert open_list.parse_answer(completion, "us_state") is None


@pytest.mark.parametrize("set_name", ["us_state", "animal"])
def test_written_forms_are_accepted_and_give_every_item(set_name):
  found = open_list.written_forms(set_name)
  assert {*found.values()} == {*open_list.answer_set(set_name).items}
  for text, item in list(found.items())[::17]:
    assert open_list.parse_answer(text, set_name) == item
  for text in (
    ("Texas", "texas.", "The Texas", '"Texas".', "**New York**") if set_name == "us_state" else ("An elk!", "cats")
  ):
    assert text in found


def test_an_alias_of_two_items_is_refused_when_the_set_is_built():
  with pytest.raises(ValueError, match="'b' is both 'a' and 'c'"):
    open_list._build(open_list_sets.Source("letter", False, "a = b, c = b"))


@pytest.mark.parametrize(
  ("completion", "set_name", "answer"),
  [
    ("Côte d’Ivoire", "country", "Ivory Coast"),
    ("U.S.", "country", "United States"),
    ("the Netherlands", "country", "Netherlands"),
    ("St Lucia", "country", "Saint Lucia"),
    ("west-virginia", "us_state", "West Virginia"),
    ("Aluminum", "chemical_element", "aluminium"),
    ("Wolves", "animal", "wolf"),
    ("strawberries", "fruit", "strawberry"),
    ("an elephant", "animal", "elephant"),
    ("Palm trees.", "tree", "palm"),
    ("“Teal”", "colour", "teal"),
  ],
)
def test_reasonable_forms_of_an_answer_are_accepted(completion, set_name, answer):
  assert open_list.parse_answer(completion, set_name) == answer


@pytest.mark.parametrize(
  "completion",
  ["", " ", ".", '""', "the", "Texas, Ohio", "Texas and Ohio", "Texas\nOhio", "Texas..", "It is Texas.", "Texas is one",
   "1. Texas", "**Texas", '"Texas', "Texa", "Texas Texas", "France", "Texas?", "Texass", "<b>Texas</b>"],
)  # fmt: skip
def test_anything_but_one_item_is_refused(completion):
  assert open_list.parse_answer(completion, "us_state") is None


def test_reward_is_one_for_exactly_one_item_of_the_right_set():
  completions = ["Texas.", "Paris", "Paris", "I like Paris"]
  set_names = ["us_state", "us_state", "european_capital", "european_capital"]
  scores = open_list.open_list_reward(["p"] * 4, completions, set_name=set_names, seed=[0] * 4)
  assert scores == [1.0, 0.0, 1.0, 0.0]
  with pytest.raises(ValueError):
    open_list.open_list_reward(["p"], ["Texas", "Ohio"], set_name=["us_state"])


def test_splits_share_no_prompt_and_heldout_sets_are_never_trained_on():
  by_split = {split: open_list.tasks(split) for split in open_list.SPLITS}
  prompts = {split: {task.prompt for task in tasks} for split, tasks in by_split.items()}
  assert not prompts["train"] & prompts["heldout_wordings"]
  assert not prompts["train"] & prompts["heldout_set"]
  for split, tasks in by_split.items():
    assert len(prompts[split]) == len(tasks)
    assert {task.split for task in tasks} == {split}
  trained = {task.set_name for task in by_split["train"]}
  for split in ("validation_wordings", "heldout_wordings"):
    assert not prompts["train"] & prompts[split]
    assert trained == {task.set_name for task in by_split[split]}
  assert not prompts["validation_wordings"] & prompts["heldout_wordings"]
  assert {task.set_name for task in by_split["heldout_set"]} == set(open_list.HELDOUT_SETS)
  assert not trained & set(open_list.HELDOUT_SETS)
  assert len(open_list.TRAIN_WORDINGS) >= 4 and len(open_list.HELDOUT_WORDINGS) >= 4


def test_prompts_name_the_set_with_its_article_and_give_no_answer_away():
  for split in open_list.SPLITS:
    for task in open_list.tasks(split):
      answers = open_list.answer_set(task.set_name)
      assert answers.noun in task.prompt and "{" not in task.prompt
      words = task.prompt.replace(answers.noun, "").replace(".", "").replace(",", "").split()
      given = [word for word in words if open_list.parse_answer(word, task.set_name)]
      assert not given, (task.prompt, given)
  prompts = " ".join(task.prompt for task in open_list.tasks("heldout_wordings"))
  for phrase in ("a US state", "an animal", "a European capital city", "an item of clothing", "an ocean or sea"):
    assert phrase in prompts


def test_sets_and_wordings_select_in_the_given_order():
  tasks = open_list.tasks("train", sets=("month", "us_state"), wordings=(1, 0))
  assert [(task.set_name, task.prompt) for task in tasks[:2]] == [
    ("month", "Choose one month of the year. Answer in at most two words."),
    ("month", "Answer with one word or name only, no sentence. Give a month of the year."),
  ]
  assert [task.set_name for task in tasks] == ["month", "month", "us_state", "us_state"]


@pytest.mark.parametrize(
  ("call", "named"),
  [
    (lambda: open_list.tasks("test"), "'test'"),
    (lambda: open_list.tasks("train", sets=["bird"]), "'bird'"),
    (lambda: open_list.tasks("heldout_set", sets=["month"]), "'month'"),
    (lambda: open_list.tasks("train", wordings=[4]), "wording 4"),
    (lambda: open_list.parse_answer("x", "planets"), "'planets'"),
  ],
)
def test_unknown_names_are_named_with_the_choices(call, named):
  with pytest.raises(InputError, match=named) as error:
    call()
  assert "use" in str(error.value) and "\n" not in str(error.value)
