"""The model card of an exported run: README.md with the metadata that the Hugging Face hub reads."""

from collections.abc import Iterator
from collections.abc import Mapping
import json
import pathlib

from ml_collections import ConfigDict

from experiments.configured import constraints as build_constraints
from experiments.run import distributed
from experiments.run import metrics_file
from experiments.run import workdir as workdirs
import qempo_jax
from qempo_jax import paths

FILE, CONFIG, DEMO = "README.md", "qempo_config.json", "HuggingFaceTB/SmolLM2-135M-Instruct"
# Figures of a report, and of the last update's metrics.
_FIGURES = {
  "reward": "reward", "effective_answers": "effective acceptable answers a prompt", "entropy": "entropy, nats a response",
  "kl": "KL to the base model, nats a response", "length": "tokens a response",
}  # fmt: skip


def write(target: pathlib.Path, config: ConfigDict, workdir: pathlib.Path, what: str) -> None:
  """Puts the card and the run's config into the folder of an exported model, on the first process."""
  if distributed.is_writer() and workdirs.holds_run(workdir):
    paths.write_atomically(target / CONFIG, (workdir / "config.json").read_text(encoding="utf-8"))
    paths.write_atomically(target / FILE, card(config, workdir, what))


def card(config: ConfigDict, workdir: pathlib.Path, what: str) -> str:
  """The text of README.md.

  Args:
    config: the run's.
    workdir: of the run; its report, if there is one, gives certificates and held-out figures.
    what: the exported parameters, such as "the policy after step 40".
  """
  base = DEMO if config.model.source == "demo" else config.model.source
  label = build_constraints.label(config)
  lines = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
  lines += [f"base_model: {base}"] * (not pathlib.Path(base).exists())
  if config.data.source.startswith("hf:"):
    lines += ["datasets:", f"- {config.data.source.removeprefix('hf:').split(':')[0]}"]
  lines += ["tags:", "- qempo_jax", f"- {label}", "---", "", f"# {pathlib.Path(base).name}, aligned by {label}", ""]
  lines += [f"{what[0].upper()}{what[1:]}, from `{base}`, by qempo_jax {qempo_jax.__version__}.", ""]
  lines += ["## Certificates", "", *_certified(workdir, label), "", "## Training", "", *_training(workdir), ""]
  lines += ["## How it was made", "", *_made(config, workdir), ""]
  lines += [
    "Certificates and figures are of samples at the temperature of the config, without top-p or top-k, on prompts like those named, of the",
    "checkpoint that was evaluated. The licence is that of the base model and of the data.",
  ]
  return "\n".join(lines) + "\n"


def _certified(workdir: pathlib.Path, label: str) -> Iterator[str]:
  path = workdir / "report" / "results.json"
  found = json.loads(path.read_text(encoding="utf-8"))["methods"].get(label) if path.is_file() else None
  if not found:
    yield "None: no report was made before the export (`python -m experiments.evaluate --workdir=DIR`)."
    return
  for split, figures in found["splits"].items():
    yield from (f"- **{one['verdict']}** on {split}: {one['words']}" for one in figures["certificates"])
    yield from ("", f"| {split}, {figures['num_prompts']} prompts | mean | 95 % interval |", "|---|---|---|")
    for name, text in _FIGURES.items():
      value: Mapping = figures[name]
      if value["low"] is not None:
        yield f"| {text} | {value['mean']:.3g} | {value['low']:.3g} to {value['high']:.3g} |"
    yield ""


def _training(workdir: pathlib.Path) -> Iterator[str]:
  rows = [row for row in metrics_file.read(workdir / metrics_file.NAME) if row.get("reward") is not None]
  if not rows:
    yield "Nothing was sampled while training."
    return
  shown = (f"{text} {rows[-1][name]:.3g}" for name, text in _FIGURES.items() if rows[-1].get(name) is not None)
  prices = (
    f"multiplier of {key.split('/')[1]} {value:.3g}" for key, value in rows[-1].items() if key.endswith("/multiplier")
  )
  yield f"Samples of update {rows[-1]['step']}: {', '.join([*shown, *prices])}."


def _made(config: ConfigDict, workdir: pathlib.Path) -> Iterator[str]:
  bounds = {name: of_one.bound for name, of_one in config.constraints.items() if of_one.bound is not None}
  yield f"- {config.steps} updates, seed {config.seed}, method `{build_constraints.label(config)}`"
  yield f"- data `{config.data.source}`" + "".join(
    f", SHA-256 of the {kind} `{value}`" for kind, value in _data(workdir).items()
  )
  yield f"- reward `{config.reward.function or 'none'}`" + "".join(
    f", {name} bound {value:g}" for name, value in bounds.items()
  )
  yield f"- again: `python -m experiments.train --config={CONFIG} --workdir=DIR`, with the file of that name beside this one"


def _data(workdir: pathlib.Path) -> Mapping[str, str]:
  path = workdir / workdirs.DATA
  return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
