"""A new user's commands, as the pages print them, end without an error, and a stopped run goes on where it stopped."""

import json

import pytest

from tests import journeys
from tests import pages

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return journeys.clone(tmp_path_factory.mktemp("user") / "clone")


@pytest.mark.parametrize("page", journeys.PAGES)
def test_every_printed_command_runs(folder, page):
  if page == "guides/using_the_model" and not (folder / "runs" / "dpo").exists():
    journeys.play(folder, "own_data")  # whose run it exports
  played = journeys.play(folder, page)
  assert played and [found for found in played if found[1]] == []


def test_the_first_step_is_trained_by_the_third_command():
  verbs = [verb for verb, _ in pages.commands(pages.ROOT / "docs" / "own_data.md")]
  assert "train" in verbs[:3]


def test_ctrl_c_saves_and_the_same_command_goes_on(folder):
  code, stopped, again = journeys.stop_and_resume(folder)
  assert code == 130 and "resuming at step" in again, stopped
  rows = [json.loads(line) for line in (folder / "runs" / "stopped" / "metrics.jsonl").open()]
  assert [row["step"] for row in rows] == list(range(1, 401))
