"""Exact figures of a tiny transformer's policy against sums over every response there is, and against its samples."""

import numpy as np
import pytest

from experiments import build
from qempo_jax.evaluation import page
from qempo_jax.evaluation import summary
from qempo_jax.rewards import answers
from tests.loops import toy

RESPONSES = [tuple(map(int, response)) for response in toy.responses()]
SAMPLES = 1024


def _text(response) -> str:
  return toy.ToyTokenizer().decode([token for token in response if token != toy.EOS])


def _answer(text: str, set_name: str = "toy") -> str | None:
  """The sum of a response's tokens, where it is even and the response begins with 3, 4 or 5; else no answer."""
  tokens = [int(token) for token in text.split()]
  return str(sum(tokens)) if tokens and tokens[0] > 2 and sum(tokens) % 2 == 0 else None


FORMS = {_text(response): _answer(_text(response)) for response in RESPONSES if _answer(_text(response))}


@pytest.fixture
def found(tmp_path, monkeypatch):
  """The evaluation's rows of both prompts, every right response listed but those that begin with 5."""
  listed = {text: answer for text, answer in FORMS.items() if not text.startswith("5")}
  monkeypatch.setattr(answers, "known", lambda set_name: set_name or "")
  monkeypatch.setattr(answers, "written_forms", lambda set_name: listed)
  monkeypatch.setattr(answers, "parse_answer", _answer)
  monkeypatch.setattr(answers, "set_size", lambda set_name: len({*FORMS.values()}))
  monkeypatch.setattr(answers, "families", lambda set_name, prompt: None)
  monkeypatch.setattr(answers, "clusters", lambda split, set_name: (("prompt",), "new prompts"))
  config = toy.config(tmp_path)
  config.evaluation.samples_per_prompt, config.evaluation.prompts_per_batch = SAMPLES, 3
  rows = [{"prompt": prompt, "split": "train", "set_name": "toy"} for prompt in toy.PROMPTS]
  rows.append({"prompt": toy.PROMPTS[0], "split": "other", "set_name": ""})  # its answers are not listed
  reward = lambda prompts, completions, **columns: [float(_answer(text) is not None) for text in completions]
  policy = toy.policy()
  evaluate = build.evaluator(config, policy, rows, reward)
  without = evaluate(policy.params, method="base", seed=0, exact=False)
  of_rows = evaluate(policy.params, method="base", seed=0)
  assert without == [{name: value for name, value in row.items() if name != "exact"} for row in of_rows]
  return of_rows, policy


def _halved(exact: dict[str, float]) -> dict[str, float]:
  return exact | {name: exact[name] / 2 for name in ("acceptable", "effective_answers")}


def _entropy(probs) -> float:
  return float(-np.sum(probs * np.log(probs)))


def test_figures_are_sums_over_all_responses_and_samples_agree(found):
  rows, policy = found
  assert [row["exact"]["left_out"] for row in rows if "exact" in row] == pytest.approx([0, 0], abs=1e-3)
  given = np.array([_answer(_text(response)) or "" for response in RESPONSES])
  listed = (given != "") & np.array([response[0] != 5 for response in RESPONSES])
  for index, log_probs in enumerate(toy.log_probs(policy.params)):
    samples = rows[index * SAMPLES : (index + 1) * SAMPLES]
    exact, probs = samples[0]["exact"], np.exp(log_probs)
    right = probs[listed].sum()
    mass = np.array([probs[listed & (given == answer)].sum() for answer in sorted({*given[listed]})])
    wrong = (1 - right) * _entropy(probs[~listed] / (1 - right))
    assert exact["acceptable"] == pytest.approx(right, abs=2e-3)
    assert exact["effective_answers"] == pytest.approx(np.exp(_entropy(mass / right)), rel=1e-2)
    assert exact["distinct@64"] == pytest.approx((1 - (1 - mass) ** 64).sum(), rel=1e-2)
    assert exact["entropy_accept"] == pytest.approx(_entropy(np.array([right, 1 - right])), abs=5e-3)
    assert exact["entropy_right"] == pytest.approx(right * _entropy(probs[listed] / right), abs=2e-2)
    deviation = lambda value, probs=probs: np.sqrt(np.sum(probs * (value - probs @ value) ** 2) / SAMPLES)
    assert abs(exact["entropy_wrong"] - wrong) < 4 * deviation(np.where(listed, 0, -log_probs))
    unlisted = (given != "") & ~listed
    assert abs(exact["unlisted"] - probs[unlisted].sum()) < 4 * deviation(unlisted)
    sampled = np.mean([row["answer"] is not None for row in samples]) - exact["unlisted"]
    assert abs(sampled - right) < 4 * deviation(listed)
    assert "exact" not in samples[1] and "exact" not in rows[2 * SAMPLES]


def test_the_summary_has_both_and_says_where_the_list_falls_short(found):
  rows, _ = found
  results = summary.summarise(rows, floor=0.1, num_draws=200)
  figures = results["methods"]["base"]["splits"]["train"]["exact"]
  parts = [figures[f"entropy_{part}"]["mean"] for part in ("accept", "right", "wrong")]
  assert figures["entropy"]["mean"] == pytest.approx(sum(parts))
  sampled = np.mean([row["answer"] is not None for row in rows if row["split"] == "train"])
  assert figures["sampled"]["acceptable"]["mean"] == pytest.approx(sampled)
  assert abs(figures["difference"]["acceptable"]["mean"]) < 0.05 and abs(figures["difference"]["entropy"]["mean"]) < 0.2
  assert results["methods"]["base"]["splits"]["other"]["exact"] == {}
  kinds = [warning["kind"] for warning in results["warnings"]]
  assert "unlisted" in kinds and "exact" not in kinds
  assert abs(figures["standard_errors"]) < 4
  html = page.render(results, {}, rows)
  assert html.count("Exact figures") == 1 and f"sampled {sampled:.3f}" in html  # on one of the two splits
  halved = [row | {"method": "qempo_c"} | ({"exact": _halved(row["exact"])} if "exact" in row else {}) for row in rows]
  both = summary.summarise([*rows, *halved], floor=0.1, num_draws=200)
  compared = both["comparisons"]["train"]["qempo_c"]
  assert compared["effective_answers_ratio"]["mean"] == 1 and "exact" not in both["comparisons"]["other"]["qempo_c"]
  assert compared["exact"]["effective_answers_ratio"]["mean"] == pytest.approx(1 / 2)
  assert compared["exact"]["effective_answers_ratio"]["by_seed"] == pytest.approx([1 / 2])
  assert compared["exact"]["acceptable_difference"]["mean"] == pytest.approx(-figures["acceptable"]["mean"] / 2)
  assert "By exact probabilities" in page.render(both, {}, [*rows, *halved])
  wrong = [row | ({"exact": row["exact"] | {"acceptable": 0.9}} if "exact" in row else {}) for row in rows]
  assert "exact" in [warning["kind"] for warning in summary.summarise(wrong, floor=0.1, num_draws=200)["warnings"]]
