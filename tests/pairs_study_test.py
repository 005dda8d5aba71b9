"""The study on preference pairs: what is kept of a run, and its tables by hand."""

import json

import pytest

from experiments import cli
from experiments.studies import collect
from experiments.studies import pairs_tables

ROW = {
    "split": "question.jsonl", "set_name": "", "entropy": 1.0, "log_prob": -1.0, "ref_log_prob": -2.0, "num_tokens": 4,
    "truncated": True, "reward": 0.5, "judge": -0.5,
}  # fmt: skip

FLOOR = {"objective.min_reward": 0.5}


def test_a_run_on_texts_is_collected_with_its_diversity(tmp_path, monkeypatch):
  monkeypatch.setattr(
    collect.sentence_encoder, "load", lambda: lambda texts: [[1.0, 0.0] if "cat" in t else [0.0, 1.0] for t in texts]
  )
  tree = collect.syntactic.Tree(("NOUN",), (0,))
  monkeypatch.setattr(collect.syntactic, "parse_with_spacy", lambda texts: [tree] * len(texts))
  folder = tmp_path / "runs" / "dpo-0-seed0"
  folder.mkdir(parents=True)
  config = cli.load_config(collect.RESULTS.parents[1] / "configs" / "studies" / "offline_pairs.py")
  (tmp_path / "config.json").write_text(config.to_json_best_effort())
  result = {"method": "dpo", "point": [["optimizer.learning_rate", 1e-5]], "seed": 0, "seconds": 1.0}
  (folder / "result.json").write_text(json.dumps(result))
  rows = [ROW | {"prompt": "user: p", "completion": text} for text in ("a cat", "a dog")]
  rows += [ROW | {"prompt": "user: q", "completion": "", "judge": 1.5}] * 2
  (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  (run,) = collect.collect([tmp_path])
  first, second = run["prompts"]
  assert (
    first["semantic_distance"] == 0.5
    and first["syntactic_distance"] == pytest.approx(0, abs=1e-9)
    and first["judge"] == -0.5
  )
  assert (second["prompt"], second["samples"], second["judge"], second["truncated"]) == ("user: q", 2, 1.5, 1)
  assert second["distinct_2"] == 0  # nothing was said
  assert run["changed"]["offline.loss"] == "dpo"


def _run(method, seed, judge, changed, rate=1e-5):
  prompts = [
    {"split": split, "prompt": f"p{number}", "log_prob": -1.0, "ref_log_prob": -3.0}
    | {name: 1.0 for name in pairs_tables.COLUMNS if name != "kl"}
    | {"judge": judge + number}
    for split in pairs_tables.SPLITS
    for number in range(8)
  ]
  point = [["optimizer.learning_rate", rate]]
  return {"method": method, "point": point, "seed": seed, "prompts": prompts, "changed": changed}


def test_tables_by_hand():
  runs = [_run(method, seed, float(method == "qempo"), FLOOR) for method in ("dpo", "qempo") for seed in (0, 1)]
  lines = pairs_tables.tables([*runs, _run("base", 0, 0.0, FLOOR)])
  of_qempo = [line.split(" | ") for line in lines if line.startswith("| QEMPO |")]
  assert len(of_qempo) == 4  # two files, each with figures and with differences
  assert of_qempo[0][1] == "2" and of_qempo[0][2].startswith("4.50 [") and of_qempo[0][8].startswith("2.00 [")
  assert of_qempo[0][-1].startswith("MET (1.00)")
  assert of_qempo[1][1] == f"1.00 [1.00, 1.00], p {2 / 2**8:.3f}"  # all 8 differences of one sign
  assert sum(line.startswith("| Base |") for line in lines) == 2  # among the figures alone


def test_a_point_is_compared_with_the_baselines_of_nearest_score():
  runs = [
    _run("dpo", 0, 0.0, {}),
    _run("dpo", 0, 1.0, {}, rate=2e-5),
    _run("nll", 0, 0.75, {}),
    _run("base", 0, 9.0, {}),
  ]
  lines = pairs_tables.tables(runs)
  assert [line.split(" |")[0] for line in lines[2:6]] == [
    "| Base",
    "| DPO, rate 1e-05",
    "| DPO, rate 2e-05",
    "| Likelihood",
  ]
  assert lines[9].startswith("| Likelihood against rate 2e-05 | -0.25 [-0.25, -0.25], p ")
  assert "floor of" not in lines[0]


@pytest.mark.parametrize("name", ["floor_reward", "judge_reward"])
def test_reward_models_of_the_study_are_configs(name):
  config = cli.load_config(collect.RESULTS.parents[1] / "configs" / "studies" / f"{name}.py")
  assert config.reward_model.cut_responses and config.sampling.max_response_length == 64
