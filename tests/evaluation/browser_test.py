"""Both pages in headless Chromium: they fit a phone and a desk, show their pictures, and the console stays empty."""

import html
import json
import shutil
import subprocess

import pytest

from qempo_jax.evaluation import frontier_page
from qempo_jax.evaluation import report
from qempo_jax.evaluation import summary
from tests.evaluation import frontier_test

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

_MEASURE = """<script>addEventListener("load", () => parent.postMessage(JSON.stringify({
  width: innerWidth, content: document.documentElement.scrollWidth,
  images: [...document.images].filter(image => image.complete && image.naturalWidth > 0).length}), "*"));</script></body>"""
_FRAME = """<title></title><script>addEventListener("message", event => { document.title = event.data; });</script>
<iframe src="measured.html" style="border: 0; width: %dpx; height: 900px"></iframe>"""


@pytest.fixture(scope="module")
def indices(tmp_path_factory, make_rows, make_metrics):
  """The path of the report's page and of the frontier's, by name."""
  directory, rows = tmp_path_factory.mktemp("pages"), make_rows(num_samples=8)
  results = summary.summarise(rows, floor=0.85, max_kl={"qempo_kl": 3.0}, num_draws=100, cluster=("prompt",))
  runs = frontier_test.make_runs()
  for run in runs:  # labels as long as they come
    run["point"] += [
      ["method", "grpo(beta=0.04, token_entropy_weight=0.003)"],
      ["constraints.quality.start", 16.0],
    ]
  frontier = {"runs": runs, "curves": {}, "config": frontier_test.CONFIG, "command": "c", "made_now": {}}
  return {
    "report": report.write_report(directory / "report", results, make_metrics(), rows),
    "frontier": frontier_page.write(directory / "frontier", frontier),
  }


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium to look at the page")
@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("name", ["report", "frontier"])
def test_page_fits_its_width_in_a_browser_without_complaints(indices, name, tmp_path, width):
  index = indices[name]
  text = index.read_text().replace("default-src", "script-src 'unsafe-inline'; default-src")
  (tmp_path / "measured.html").write_text(text.replace("</body>", _MEASURE))
  frame = tmp_path / "frame.html"  # a headless window is never narrower than 500 pixels
  frame.write_text(_FRAME % width)
  dom = _browse(tmp_path, 1400, "--virtual-time-budget=5000", "--dump-dom", frame.as_uri()).stdout
  found = json.loads(html.unescape(dom.split("<title>")[1].split("</title>")[0]))
  assert found == {"width": width, "content": width, "images": len(list(index.parent.glob("*.png")))}
  picture = tmp_path / "page.png"
  complaints = _browse(tmp_path, width, f"--screenshot={picture}", index.as_uri()).stderr
  assert "CONSOLE" not in complaints
  assert picture.read_bytes().startswith(b"\x89PNG")


def _browse(folder, width, *arguments):
  command = [
    CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--hide-scrollbars",
    f"--user-data-dir={folder / 'profile'}", f"--window-size={width},1000", *arguments,
  ]  # fmt: skip
  return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
