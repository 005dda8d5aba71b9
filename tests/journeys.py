"""New users' journeys with the commands that the pages print, at tiny size: `python -m tests.journeys FOLDER [PAGE ...]`.

A page's commands run in its order, in a fresh clone, on a random model of two layers. What stands before a command's own arguments makes
it small; nothing else is added.
"""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys

import jax
import tokenizers
import transformers

from qempo_jax.models import export
from qempo_jax.models import parameters
from qempo_jax.models.config import ModelConfig
from tests import pages

GUIDES = ("which_method", "moving", "reward_cookbook", "recipes", "memory_and_speed", "using_the_model")
PAGES = ("own_data", *(f"guides/{name}" for name in GUIDES), "evaluation", "pods")
# Pages whose other commands need the demo model, benchmarks' files or many machines: only those that match are run.
ONLY = {"evaluation": "my_completions", "pods": "--dry_run"}
TEMPLATE = (
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REWARDS = """
def polite(prompts, completions, **columns):
  return [index % 3 / 2 for index in range(len(completions))]


def gated(prompts, completions, *, answer, **columns):
  return polite(prompts, completions)


judged = polite
"""
SMALL = {
  "steps": 2, "data.max_prompt_length": 128, "data.prompts_per_step": 2, "sampling.group_size": 4,
  "sampling.max_response_length": 12, "feasibility.samples_per_prompt": 8, "checkpoint.asynchronous": False,
  "data.too_long": "truncate",
}  # fmt: skip
# Most samples of a random model end late: enough of them for a pair.
LONGER = {"sampling.group_size": 16, "sampling.max_response_length": 48}
SMALL_EVALUATION = {
  "evaluation.samples_per_prompt": 4, "evaluation.prompts_per_batch": 4, "evaluation.axes": "('lexical',)",
  "evaluation.num_draws": 50,
}  # fmt: skip


def tiny_model(folder: pathlib.Path) -> pathlib.Path:
  """A random Llama of two layers with a byte tokenizer and a chat template, as a Hugging Face folder."""
  words = ["<pad>", "<|im_start|>", "<|im_end|>", *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())]
  inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
  inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  inner.decoder = tokenizers.decoders.ByteLevel()
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<pad>", additional_special_tokens=["<|im_start|>"]
  )
  tokenizer.chat_template = TEMPLATE
  config = ModelConfig(
    vocab_size=len(words), hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
    rope_theta=1e4, norm_epsilon=1e-5, tie_embeddings=True,
  )  # fmt: skip
  return export.export_model(folder, parameters.init(jax.random.key(0), config), config, tokenizer=tokenizer)


def clone(folder: pathlib.Path) -> pathlib.Path:
  """A fresh clone of the repository with a user's own files in it."""
  subprocess.run(["git", "clone", "-q", str(pages.ROOT), str(folder)], check=True)
  topics = ("rain", "bread", "a chair", "the sea", "a song", "snow", "tea", "a road")
  prompts = [f"Say something about {topic}." for topic in topics]
  rows = {
    "my_pairs": [{"prompt": prompt, "chosen": "thank you", "rejected": f"no {i}"} for i, prompt in enumerate(prompts)],
    "my_prompts": [{"prompt": prompt} for prompt in prompts],
    "my_questions": [{"prompt": prompt, "answer": "4"} for prompt in prompts],
    "heldout": [{"prompt": f"Tell me of {topic}."} for topic in topics],
    "runs/others/samples/one": [
      {"prompt": p, "completion": f"it is {i % 2}", "reward": 1} for p in prompts for i in range(4)
    ],
    "runs/others/samples/two": [
      {"prompt": p, "completion": f"it is {i}", "reward": 1} for p in prompts for i in range(4)
    ],
  }
  for name, of_file in rows.items():
    path = folder / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in of_file), encoding="utf-8")
  (folder / "my_rewards.py").write_text(REWARDS, encoding="utf-8")
  # A user's environment has no PyTorch, which transformers would import at the start of every command.
  (folder / "sitecustomize.py").write_text('import sys\nsys.modules["torch"] = None\n', encoding="utf-8")
  tiny_model(folder / "tiny")
  return folder


def small(verb: str, arguments: list[str]) -> list[str]:
  """The command line of a printed command, made small; a dry run of the compile check reads no weights and is left as it is."""
  if verb == "compile_check":
    return [sys.executable, "-m", "experiments.compile_check", *arguments]
  of_run = verb in ("evaluate", "export", "feasibility") and not any(a.startswith("--config=") for a in arguments)
  changes = (
    {"evaluate": SMALL_EVALUATION, "feasibility": {}, "export": {}}[verb] if of_run else SMALL | SMALL_EVALUATION
  )
  if verb == "make_pairs":
    changes = changes | LONGER
  sized = [f"--config.{key}={value}" for key, value in changes.items()]
  return [
    sys.executable,
    "-m",
    f"experiments.{verb}",
    *([] if of_run else ["--config.model.source=tiny"]),
    *sized,
    *arguments,
  ]


def environment(folder: pathlib.Path) -> dict[str, str]:
  """The clone's own packages, on one CPU device; a command compiles fast and keeps every program for the next ones."""
  flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
  fast = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1", "XLA_FLAGS": " ".join(flags), "PYTHONPATH": str(folder),
  }  # fmt: skip
  return {name: value for name, value in os.environ.items() if name != "PJRT_NPROC"} | fast


def play(folder: pathlib.Path, page: str) -> list[tuple[str, int, str]]:
  """(command, exit code, last line) of each of a page's commands."""
  played = []
  for verb, written in pages.commands(pages.ROOT / "docs" / f"{page}.md"):
    if ONLY.get(page, "") not in written or "--" not in written:
      continue
    command = small(verb, shlex.split(written))
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False)
    said = (done.stdout + done.stderr).strip().splitlines() or [""]
    played.append((f"{verb} {written}", done.returncode, said[-1]))
    print(done.returncode, verb, written, "|", said[-1], flush=True)
  return played


def stop_and_resume(folder: pathlib.Path) -> tuple[int, str, str]:
  """Ctrl-C at the first step of the page's first training run, and the same command again: (exit code, both outputs)."""
  written = next(a for verb, a in pages.commands(pages.ROOT / "docs" / "own_data.md") if verb == "train")
  command = small("train", [*shlex.split(written), "--workdir=runs/stopped", "--config.steps=400"])
  first = subprocess.Popen(
    command, cwd=folder, env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job's children ignore it
  )  # fmt: skip
  said = ""
  for line in first.stdout:
    if (
      line.startswith("step 1/") and "step 1/" not in said
    ):  # the line may be printed again; a second signal would end it
      first.send_signal(signal.SIGINT)
    said += line
  code = first.wait()
  again = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=True)
  return code, said, again.stdout


if __name__ == "__main__":
  place = pathlib.Path(sys.argv[1])
  place = place if place.exists() else clone(place)
  bad = [found for page in sys.argv[2:] or PAGES for found in play(place, page) if found[1]]
  print("\n".join(map(str, bad)) or "no errors")
