"""`experiments.evaluate`: samples a trained policy and its reference, or scores files, and writes the report."""

import json
import pathlib
import re

import pytest

from experiments import build
from experiments import cli
from experiments import evaluate
from experiments.configured import data as build_data
from experiments.configured import policy as build_policy
from experiments.measure import results as results_lib
from experiments.measure import sample_files
from experiments.measure import samples_once
from experiments.run import workdir as workdirs
from qempo_jax.errors import InputError
from tests.loops import toy

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def config(tmp_path, monkeypatch):
  found = toy.small(toy.config(tmp_path))
  found.steps, found.checkpoint.every = 2, 0
  found.constraints.quality.bound = 0.4
  found.evaluation.samples_per_prompt, found.evaluation.prompts_per_batch = 8, 16
  found.evaluation.axes, found.evaluation.num_draws = ("lexical",), 50
  monkeypatch.setattr(build_policy, "policy", lambda config: toy.policy())
  monkeypatch.setattr(cli, "load_config", lambda path: found)
  return found


@pytest.fixture
def run(tmp_path):
  def call(*arguments):
    argv = ["--config=any.py", f"--workdir={tmp_path / 'run'}", *arguments]
    cli.run(evaluate.main, description="", example="", argv=argv)
    return json.loads((tmp_path / "run" / "report" / "results.json").read_text())

  return call


def test_a_trained_policy_and_its_reference_are_sampled_once_and_reported(config, run, tmp_path, capsys):
  workdir = tmp_path / "run"
  workdirs.open_workdir(workdir, config)
  toy.train(config, workdir)
  capsys.readouterr()
  found = run("--config.evaluation.num_draws=60")  # the run's other settings of evaluation don't stand in the way
  assert list(found["methods"]) == ["base", "qempo_kl"]
  assert "Checkpoint: step 2, the best: " in capsys.readouterr().out  # the config has bounds
  figures = found["methods"]["qempo_kl"]["splits"]["train"]
  rows = [json.loads(line) for line in (workdir / "samples" / "qempo_kl-seed0.jsonl").open()]
  assert figures["num_samples"] == len(rows) == 16 * 8
  assert figures["reward"]["mean"] == pytest.approx(sum(row["reward"] for row in rows) / len(rows))
  assert figures["certificates"][0]["bound"] == 0.4 and found["run"]["temperature"] == 1.0
  assert figures["entropy_gains"]["base"]["low"] < figures["entropy_gains"]["base"]["mean"]
  assert (workdir / "report" / "index.html").is_file() and (workdir / "report" / "slack.png").is_file()
  capsys.readouterr()
  run()
  assert capsys.readouterr().out.count("done before") == 2


def test_samples_made_in_another_way_are_not_mixed_in(config, run, capsys):
  run()
  with pytest.raises(SystemExit):
    run("--config.evaluation.temperature=0.7")
  assert "made in another way" in capsys.readouterr().err


def test_families_that_no_prompt_has_are_refused_before_sampling(config, run, tmp_path, capsys):
  with pytest.raises(SystemExit):
    run("--config.evaluation.cluster=('topic',)")
  said = capsys.readouterr()
  assert "lack the column 'topic' of evaluation.cluster" in said.err and "Sampling" not in said.out
  assert not (tmp_path / "run").exists()


def test_a_column_of_prompts_that_is_called_set_name_by_chance_is_no_set_of_answers(config, run, tmp_path):
  path = tmp_path / "prompts.jsonl"
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  path.write_text("".join(json.dumps(row | {"set_name": ("capitals", 5)[i % 2]}) + "\n" for i, row in enumerate(rows)))
  config.evaluation.samples_per_prompt = 2
  assert run()["methods"]["base"]["splits"]["train"]["num_samples"] == 2 * len(rows)


def test_greedy_samples_are_reported_as_such(config, run, tmp_path):
  config.evaluation.temperature, config.evaluation.samples_per_prompt = 0.0, 2
  assert run()["run"]["sampling"].startswith("greedy; log-probs and entropies are of the truncated distribution")
  rows = [json.loads(line) for line in (tmp_path / "run" / "samples" / "base.jsonl").open()]
  assert len({(row["prompt"], row["completion"]) for row in rows}) == len(toy.PROMPTS)
  assert all(row["log_prob"] == row["entropy"] == 0 > row["ref_log_prob"] for row in rows)


def test_a_checkpoint_is_no_matter_of_files(config, run, capsys):
  with pytest.raises(SystemExit):
    run("--config.evaluation.sample=False", "--checkpoint=best")
  assert "evaluation.sample=False reads no checkpoint" in capsys.readouterr().err


def test_files_of_bare_completions_are_scored_without_a_model(config, run, tmp_path, monkeypatch):
  monkeypatch.setattr(build_policy, "policy", None)
  folder = tmp_path / "run" / "samples"
  folder.mkdir(parents=True)
  texts = {"base": ["1 2", "1 2", "3"], "mine": ["1 2 3", "4", "5 4"]}
  for name, completions in texts.items():
    rows = [{"prompt": prompt, "completion": text} for prompt in toy.PROMPTS for text in completions]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  found = run(
    "--config.evaluation.sample=False",
    "--config.evaluation.floor_kind=reference minus",
    "--config.evaluation.floor=0.5",
  )
  mine, base = (found["methods"][name]["splits"]["prompts"] for name in ("mine", "base"))
  expected = sum(toy.value(p, toy.tokens_of(c)) for p in toy.PROMPTS for c in texts["mine"]) / 6
  assert mine["reward"]["mean"] == pytest.approx(expected)
  assert mine["entropy"]["mean"] is None and mine["coverage"]["mean"] is None
  assert mine["certificates"][0]["constraint"] == "reward over reference"
  assert found["floors"]["prompts"] == pytest.approx(base["reward"]["mean"] - 0.5)
  distinct = {
    name: figures["diversity"]["all_outputs"]["distinct_2"]["mean"] for name, figures in (("m", mine), ("b", base))
  }
  assert distinct["m"] == 1 > distinct["b"]
  assert mine["words"]["mean"] == 2 and mine["length"]["mean"] is None and mine["truncation"]["mean"] is None
  page = (tmp_path / "run" / "report" / "index.html").read_text()
  assert "mine" in page and "Length (words)" in page


def test_the_command_of_the_page_compares_two_programs_completions(tmp_path, capsys):
  page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
  line = re.search(r"`python -m experiments.evaluate (--config=configs/my_completions.py [^`]*)`", page)[1]
  argv = line.replace("configs/", f"{ROOT}/configs/").replace("runs/others", str(tmp_path)).split()
  for name, texts in {"dull model": ["a b"] * 8, "lively_model_of_another_program": list("abcdefgh")}.items():
    rows = [{"prompt": p, "completion": text, "reward": 1.0} for p in "xyz" for text in texts]
    _samples(tmp_path / "samples", rows, name)
  small = ["--config.evaluation.axes=('lexical',)", "--config.evaluation.num_draws=50"]
  cli.run(evaluate.main, description="", example="", argv=argv + small)
  found = json.loads((tmp_path / "report" / "results.json").read_text())
  compared = found["comparisons"]["prompts"]["lively_model_of_another_program"]
  assert compared["baseline"] == "dull model" and compared["effective_answers_ratio"]["mean"] == pytest.approx(8)
  assert compared["p_values_holm"]["effective_answers"] <= 0.25  # three prompts allow no less
  assert set(found["run"]["config"]) == {"evaluation", "reward"}  # no model took part
  assert "few_texts" in [warning["kind"] for warning in found["warnings"]]
  assert max(map(len, capsys.readouterr().out.splitlines()[:-1])) <= 80


def test_an_unknown_floor_or_baseline_is_refused_before_anything_is_loaded(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(results_lib, "tools", None)
  _samples(tmp_path / "samples", [{"prompt": "x", "completion": "a", "reward": 1.0}] * 2)
  argv = [f"--config={ROOT}/configs/my_completions.py", f"--workdir={tmp_path}"]
  refused = {
    "evaluation.floor has no default": [],
    "set evaluation.floor=NUMBER": ["--config.evaluation.floor=0.1", "--config.evaluation.floor_kind=reference minus"],
  }
  for message, more in refused.items():
    with pytest.raises(SystemExit):
      cli.run(evaluate.main, description="", example="", argv=argv + more)
    assert message in capsys.readouterr().err


def _samples(folder, rows, name="mine"):
  folder.mkdir(parents=True, exist_ok=True)
  (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_two_tasks_with_one_prompt_are_two_tasks(config, run, tmp_path, monkeypatch):
  monkeypatch.setattr(build_policy, "policy", None)

  def equal(prompts, completions, answer, **columns):
    return [float(pair[0] == pair[1]) for pair in zip(completions, answer)]

  monkeypatch.setattr(build_data, "reward", lambda config: equal)
  tasks = [{"prompt": prompt, "answer": answer} for prompt in toy.PROMPTS for answer in ("1", "2")]
  _samples(tmp_path / "run" / "samples", [task | {"completion": text} for task in tasks for text in ("1", "1", "2")])
  found = run("--config.evaluation.sample=False", "--config.evaluation.floor=0.5")
  figures = found["methods"]["mine"]["splits"]["prompts"]
  assert figures["num_prompts"] == len(tasks) and figures["num_samples"] == 3 * len(tasks)
  assert figures["effective_answers"]["mean"] == 1 and figures["reward"]["mean"] == 0.5
  assert any(f"{len(toy.PROMPTS)} prompts stand in several tasks" in note for note in found["run"]["notes"])
  assert "Thai" in found["run"]["words"]


def test_a_byte_order_mark_belongs_to_no_line(tmp_path):
  (tmp_path / "a.jsonl").write_text('{"prompt": "a", "completion": "b", "reward": 1.0}\n', encoding="utf-8-sig")
  assert sample_files.read(tmp_path, lambda: None)[0][0]["prompt"] == "a"


def test_a_doubled_prompt_among_others_loses_no_sample(config, run, tmp_path, monkeypatch):
  monkeypatch.setattr(build_policy, "policy", None)
  tasks = [{"prompt": "p", "answer": answer} for answer in "12"] + [{"prompt": "q", "answer": "1"}]
  rows = [
    task | {"completion": text, "reward": float(text == task["answer"])}
    for task in tasks
    for text in ("1", "1", "1", "2")
  ]
  _samples(tmp_path / "run" / "samples", rows)
  found = run("--config.evaluation.sample=False", "--config.evaluation.floor=0.5")
  figures = found["methods"]["mine"]["splits"]["prompts"]
  assert (figures["num_prompts"], figures["num_samples"]) == (3, 12)
  assert figures["reward"]["mean"] == pytest.approx((0.75 + 0.25 + 0.75) / 3)
  assert figures["samples_left_out"] == 0


def test_rows_of_two_programs_are_completed(tmp_path):
  rows = [{"prompt": "a", "completion": "b", "reward": 1.0, "split": None, "seed": None, "id": n} for n in (1, 2)]
  _samples(tmp_path, rows)
  _samples(tmp_path, [{"prompt": "24", "completion": "4*6", "reward": 1.0, "set_name": "countdown 24"}], "other")
  found, notes = sample_files.read(tmp_path, lambda: None)
  assert [(row["split"], row["seed"], row["sample"], row["task"]) for row in found[:2]] == [
    ("prompts", 0, n, "") for n in (0, 1)
  ]
  assert found[2]["answer"] and any("differ in id" in note for note in notes)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("nonsense", "line 1 is not JSON"),
    ('{"prompt": "p"}', '"completion"'),
    ("", "no samples"),
    ('{"prompt": "p", "completion": "c", "split": 1}', "line 1 has split = '1': it must be a text"),
    ('{"prompt": "p", "completion": "c", "seed": [0]}', "seed = .*whole number"),
    ('{"prompt": "p", "completion": "c", "reward": NaN}', "reward = 'nan': it must be a finite number"),
    ('{"prompt": "p", "completion": "c", "exact": {"entropy": "x"}}', "line 1 has exact figure entropy = 'x'"),
    ("[" * 100_000, "line 1 is not JSON"),
    ('{"prompt": "p", "completion": "c", "reward": ' + "9" * 5000 + "}", "line 1 is not JSON"),
  ],
)
def test_a_bad_file_is_named(tmp_path, text, message):
  (tmp_path / "a.jsonl").write_text(text)
  with pytest.raises(InputError, match=message):
    sample_files.read(tmp_path, lambda: None)


def test_mt_bench_prompts_are_read_and_the_temperature_pinned(config, tmp_path, monkeypatch):
  path = tmp_path / "mt_bench" / "question.jsonl"
  path.parent.mkdir()
  path.write_text(json.dumps({"question_id": 1, "category": "math", "turns": ["Add 1 and 2.", "Now 3."]}) + "\n")
  monkeypatch.setenv("SOMEWHERE", str(tmp_path))
  config.evaluation.prompts = "jsonl:$SOMEWHERE/mt_bench/question.jsonl"
  config.sampling.temperature = 0.7
  rows = build_data.evaluation_prompts(config)
  assert [(row["prompt"], row["split"]) for row in rows] == [("Add 1 and 2.", "mt_bench")]
  assert samples_once.settings(config).sampling.temperature == 1.0
  monkeypatch.delenv("SOMEWHERE")
  with pytest.raises(InputError, match="environment variable"):
    build_data.evaluation_prompts(config)


def test_prompts_are_the_splits_where_the_source_has_them(config, tmp_path, capsys):
  rows = build_data.evaluation_prompts(config)
  assert (
    len(rows) == 16 and "those that are trained on" in capsys.readouterr().out
  )  # a file, and splits of another task
  config.evaluation.max_prompts = 3
  assert len(build_data.evaluation_prompts(config)) == 3
  (tmp_path / "held.jsonl").write_text('{"prompt": "p"}\n{"prompt": "q"}\n{"prompt": "p"}\n')
  config.evaluation.splits = (f"jsonl:{tmp_path / 'held.jsonl'}",)
  assert [row["prompt"] for row in build_data.evaluation_prompts(config)] == ["p", "q"]
  assert "1 of 3 stand there once more" in capsys.readouterr().out
  config.data.source, config.evaluation.splits = "countdown", ("heldout",)
  assert {row["split"] for row in build_data.evaluation_prompts(config)} == {"heldout"}


def test_splits_are_those_of_the_task_or_sources_of_different_names(config, tmp_path):
  for name in ("a", "b"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "test.jsonl").write_text(json.dumps({"prompt": name}) + "\n")
  config.evaluation.splits = tuple(f"jsonl:{tmp_path / name / 'test.jsonl'}" for name in ("a", "b"))
  assert len({row["split"] for row in build_data.evaluation_prompts(config)}) == 2
  for source, splits, remedy in (
    (config.data.source, ("held.jsonl",), "jsonl:held.jsonl"),
    (config.data.source, (*config.evaluation.splits, "held.jsonl"), "jsonl:held.jsonl"),
    ("countdown", ("heldout_wordings",), "validation, heldout"),
    ("open_list", ("jsonl:held.jsonl",), "heldout_set"),
  ):
    config.data.source, config.evaluation.splits = source, splits
    with pytest.raises(InputError, match=remedy):
      build_data.evaluation_prompts(config)
  config.evaluation.splits, config.evaluation.max_prompts = ("train", "heldout_set"), 2
  assert [row["split"] for row in build_data.evaluation_prompts(config)] == ["train"] * 2 + ["heldout_set"] * 2


def test_samples_of_prompts_that_changed_since_are_not_reported(config, run, tmp_path, capsys):
  config.evaluation.samples_per_prompt = 2
  assert "Reward floor 0.4" in (run() and capsys.readouterr().out)
  path = tmp_path / "prompts.jsonl"
  path.write_text(path.read_text().replace("}", ', "answer": "1"}', 1))
  with pytest.raises(SystemExit):
    run()
  assert "made in another way" in capsys.readouterr().err


def breaks(prompts, completions, **columns):
  """The toy's reward, which fails in its third call."""
  calls.append(prompts[0])
  if len(calls) == 3:
    raise RuntimeError("out of memory")
  return toy.reward(prompts, completions)


calls: list[str] = []


def test_samples_outlast_what_stops_the_sampling(config, run, tmp_path, capsys):
  config.evaluation.prompts_per_batch, config.evaluation.samples_per_prompt = 5, 2
  config.reward.function = "tests.evaluate_test.breaks"
  calls.clear()
  with pytest.raises(SystemExit):
    run()
  part = tmp_path / "run" / "samples" / "base.part"
  assert part.read_text().count("\n") == 3 and "out of memory" in capsys.readouterr().err
  with part.open("a") as file:
    file.write('{"prompt": "half a l')
  assert run() and "from prompt 11 on" in capsys.readouterr().out and len(calls) == 5
  found = (tmp_path / "run" / "samples" / "base.jsonl").read_text()
  assert [path.name for path in part.parent.iterdir() if path.suffix == ".part"] == []
  (tmp_path / "run" / "samples" / "base.jsonl").unlink()
  assert run() and (tmp_path / "run" / "samples" / "base.jsonl").read_text() == found  # as without a stop


def test_a_floor_below_the_reference_is_shown_as_its_number(config, run, capsys):
  config.evaluation.samples_per_prompt, config.constraints.quality.bound = 2, None
  found = run()
  assert f"Reward floor {found['floors']['train']:.3g} on training prompts" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("override", "said"),
  [
    ("reward=tests.evaluate_test.needs", "needs the column 'answer'"),
    ("reward_range=(1.0,0.0)", "reward_range"),
    ("judgements=absent.jsonl", "absent.jsonl"),
    ("look=5", "Look 5"),
    ("matched=1", "evaluation.matched=1"),
    ("matched=9", "evaluation.samples_per_prompt=8"),
  ],
)
def test_what_the_results_would_refuse_is_refused_before_sampling(config, run, capsys, tmp_path, override, said):
  with pytest.raises(SystemExit):
    run(f"--config.evaluation.{override}", "--config.evaluation.planned_looks=2")
  assert said in capsys.readouterr().err and not (tmp_path / "run").exists()


def needs(prompts, completions, *, answer):
  """A reward that needs a column."""


def test_held_out_prompts_have_the_columns_of_the_reward_before_the_first_step(config):
  config.evaluation.every, config.reward.function = 1, "tests.evaluate_test.needs"
  with pytest.raises(InputError, match="needs the column 'answer'"):
    build._heldout(config, toy.policy())


def test_files_of_one_method_are_pooled_in_words_and_copies_refused(tmp_path):
  rows = [{"prompt": "a", "completion": text, "reward": 1.0, "method": "m"} for text in "xy"]
  for name in ("one", "two"):
    _samples(tmp_path, rows, name)
  assert any("one.jsonl and two.jsonl are of method 'm'" in note for note in sample_files.read(tmp_path, None)[1])
  for name in ("one", "two"):
    _samples(tmp_path, [row | {"sample": place} for place, row in enumerate(rows)], name)
  with pytest.raises(InputError, match="one.jsonl and two.jsonl both hold sample 0"):
    sample_files.read(tmp_path, None)


def test_an_axis_without_its_tool_is_left_out_with_the_reason(config, monkeypatch):
  def fail():
    raise InputError("no network")

  monkeypatch.setattr(results_lib.sentence_encoder, "load", fail)
  config.evaluation.axes, config.evaluation.parser = ("semantic", "syntactic"), "absent_model"
  embed, parse, left_out = results_lib.tools(config.evaluation)
  assert (
    embed is None and parse is None and left_out["semantic"] == "no network" and "absent_model" in left_out["syntactic"]
  )


def test_the_floor_is_the_objectives_or_the_reference(config):
  assert results_lib.floor_of(config) == ("absolute", 0.4)
  config.constraints.quality.bound = None
  assert results_lib.floor_of(config) == ("reference minus", 0.0)
  config.evaluation.floor, config.evaluation.floor_kind = 0.1, "reference quantile"
  assert results_lib.floor_of(config) == ("reference quantile", 0.1)
