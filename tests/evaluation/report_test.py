"""The report: files, self-contained and escaped HTML, plots, the terminal table."""

import html.parser
import io
import json
import warnings

import jinja2
from matplotlib.transforms import Bbox
import pytest
from rich.console import Console

from qempo_jax.evaluation import page
from qempo_jax.evaluation import page_completions
from qempo_jax.evaluation import pages
from qempo_jax.evaluation import plots
from qempo_jax.evaluation import report
from qempo_jax.evaluation import summary

PLOTS = {
  "quality_answers.png", "quality_entropy.png", "reward.png", "multipliers.png", "training_entropy.png",
  "diversity.png", "slack.png", "answers_train.png", "answers_heldout_wordings.png", "answers_heldout_set.png",
}  # fmt: skip


# Context of the frontier's template, the smaller of the two.
FRONTIER = dict.fromkeys(
  ("diversity", "baseline", "tolerance", "reference", "command", "made_now", "seeds", "config_text"), ""
) | {"png": b"", "matches": [], "volumes": [], "columns": ["Point", "Reward"]}


class _Reader(html.parser.HTMLParser):
  """Collects tags, image sources and visible text."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.sources, self.text = [], [], ""
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.sources += [value for name, value in attrs if name in ("src", "href")]

  def handle_data(self, data):
    self.text += data


@pytest.fixture(scope="module")
def rows(make_rows):
  return make_rows(num_samples=8)


@pytest.fixture(scope="module")
def results(rows):
  run = {"command": "python -m experiments.train --config=configs/demo.py", "seed": 0, "config": {"lr": 5e-6}}
  return summary.summarise(rows, floor=0.85, max_kl={"qempo_kl": 3.0}, num_draws=100, run=run, cluster=("prompt",))


@pytest.fixture(scope="module")
def written(tmp_path_factory, results, rows, make_metrics):
  directory = tmp_path_factory.mktemp("run") / "report"
  assert report.write_report(directory, results, make_metrics(), rows) == directory / "index.html"
  return directory


@pytest.fixture(scope="module")
def reader(written):
  return _Reader((written / "index.html").read_text())


def test_all_files_are_there_and_none_left_over(written):
  assert {path.name for path in written.iterdir()} == PLOTS | {"results.json", "index.html"}
  for name in PLOTS:
    assert (written / name).read_bytes().startswith(b"\x89PNG")


def test_results_json_holds_the_results_and_the_warnings_of_training(written, results):
  found = json.loads((written / "results.json").read_text())
  assert found["methods"] == results["methods"] and found["run"] == results["run"]
  assert len(found["warnings"]) == len(results["warnings"]) + 1


def test_a_template_without_a_value_that_it_needs_raises():
  with pytest.raises(jinja2.UndefinedError, match="headline"):
    pages.render("frontier.html", **FRONTIER)


def test_page_needs_nothing_else_and_runs_no_script(reader):
  assert len(reader.sources) == len(PLOTS)
  assert all(source.startswith("data:image/png;base64,") for source in reader.sources)
  assert not {"script", "link", "iframe"} & set(reader.tags)


def test_completions_are_shown_as_text(written, reader):
  assert "<script>" not in (written / "index.html").read_text()
  assert "<script>alert('x')</script> & $x$" in reader.text


def test_verdict_comes_first_and_numbers_agree_with_the_results(reader, results):
  assert reader.text.index("MET") < reader.text.index("QEMPO-KL keeps the reward floor 0.85 on held-out wordings.")
  assert reader.text.index("QEMPO-KL keeps") < reader.text.index("Warnings") < reader.text.index("Plots")
  figures = results["methods"]["qempo_kl"]["splits"]["heldout_wordings"]
  assert figures["certificates"][0]["words"] in reader.text
  assert f"{figures['effective_answers']['mean']:.2f}" in reader.text
  assert "configs/demo.py" in reader.text and "5e-06" in reader.text


def test_headline_admits_rewards_that_do_not_match(results):
  methods = {name: results["methods"][name] for name in ("base", "grpo", "qempo")}
  methods["users_own"] = methods["grpo"]  # comes last, and the headline is still about QEMPO
  verdict, said, sentences = page.headline(results | {"methods": methods})
  assert verdict == "NOT MET" and said.startswith("QEMPO is below")
  assert any("not matched" in sentence for sentence in sentences)


def test_strange_text_is_escaped_and_made_visible():
  strange = "<b>\"&'\x00\udc80 {{ 7 }}"
  text = pages.render("frontier.html", **FRONTIER | {"headline": strange, "points": [(strange, pages.Cell("<i>"))]})
  shown = "&lt;b&gt;&#34;&amp;&#39;\ufffd? {{ 7 }}"
  assert text.count(shown) == 2 and "&lt;i&gt;" in text and "<i>" not in text
  assert len(page_completions.shorten("x" * 10_000)) == 241


def test_a_run_with_only_the_base_model_and_no_metrics_has_a_report(tmp_path, rows):
  few = [row for row in rows if row["method"] == "base" and row["split"] == "heldout_set"]
  results = summary.summarise(few, floor=0.85, num_draws=20)
  path = report.write_report(tmp_path, results, {}, few)
  assert "Base is below the reward floor" in _Reader(path.read_text()).text


def test_answers_that_look_like_mathtext_or_never_come_are_drawn():
  counts = [["$\\frac{$", 2], ["x" * 90, 1], ["\x1b\x00é水", 1]]  # and a glyph that the font lacks: no warning
  entry = {"num_samples": 5, "num_not_acceptable": 1, "counts": counts}
  none = {"num_samples": 4, "num_not_acceptable": 4, "counts": []}
  with warnings.catch_warnings(action="error"):
    assert plots.answers_plot({"methods": {"grpo": entry, "my method": none}}).startswith(b"\x89PNG")


def test_metrics_with_gaps_are_drawn_and_absent_ones_left_out():
  metrics = {"qempo": [{"step": 1, "reward": None}, {"step": 2, "reward": 0.5}, {"step": 3, "reward": float("nan")}]}
  assert set(plots.training_plots(metrics, 0.8)) == {"reward"}


def test_moving_average_looks_back_only():
  assert plots._moving_average([1.0, 3.0, 5.0, 7.0], 2).tolist() == [1.0, 2.0, 4.0, 6.0]


def test_terminal_table_fits_eighty_columns_and_has_every_policy_and_split(results):
  console = Console(width=80, record=True, file=io.StringIO())
  console.print(report.terminal_table(results))
  text = console.export_text()
  assert "…" not in text
  assert text.count("QEMPO-KL") == 3 and text.count("held-out wordings") == 1
  reward = results["methods"]["qempo_kl"]["splits"]["heldout_wordings"]["reward"]["mean"]
  assert f"{reward:.3f} ±" in text and "MET" in text


def test_a_narrow_terminal_shows_whole_verdicts_under_long_names(make_rows):
  rows = [row | {"method": f"another_programs_{row['method']}.v2"} for row in make_rows(num_samples=8)]
  results = summary.summarise(rows, floor=0.9, num_draws=20, baseline="another_programs_base.v2", cluster=("prompt",))
  console = Console(width=80, file=io.StringIO())
  console.print(report.terminal_table(results))
  text = console.file.getvalue()
  assert "tokens" in text and "…" not in text and max(map(len, text.splitlines())) <= 80
  verdicts = {
    figures["certificates"][0]["verdict"] for m in results["methods"].values() for figures in m["splits"].values()
  }
  assert verdicts and all(verdict in text for verdict in verdicts)


def test_labels_of_policies_keep_clear_of_intervals_and_of_each_other():
  canvas, (axis,) = plots.panels(1, 2.7)
  axis.set(xlim=(0, 10), ylim=(0, 1))
  interval = lambda mean, half: {"mean": mean, "low": mean - half, "high": mean + half}
  points = {
    "left_of_another_program": (interval(4, 2.5), interval(0.5, 0.05)),
    "right_of_another_program": (interval(5, 2), interval(0.55, 0.05)),
    "third": (interval(4.5, 0.3), interval(0.45, 0.2)),
  }
  plots._label_points(axis, points)
  canvas.draw()
  boxes = [text.get_window_extent() for text in axis.texts]
  assert not [1 for a in boxes for b in boxes if a is not b and a.overlaps(b)]
  for x, y in points.values():
    for ends in (((x["low"], y["mean"]), (x["high"], y["mean"])), ((x["mean"], y["low"]), (x["mean"], y["high"]))):
      line = Bbox(axis.transData.transform(ends))
      assert not any(box.overlaps(line) for box in boxes)


def test_methods_of_the_users_own_have_colours_of_their_own():
  methods = ("one", "two", "grpo", "mine", "theirs", "last")
  colours = [plots.colour(method, methods) for method in methods]
  assert len(set(colours)) == 6 and colours[2] == plots.COLOURS["grpo"]
