"""Data sources named by one string; broken rows of any kind are reported and counted."""

import copy
import gzip
import json
import os
import pathlib
import random
import subprocess
import sys

import pytest

from qempo_jax.data import files
from qempo_jax.data import formats
from qempo_jax.data import pair_tokens
from qempo_jax.data import prompts
from qempo_jax.data import row_store
from qempo_jax.data import sources
from qempo_jax.data import tokenization
from qempo_jax.errors import InputError
from tests.data import demo_tokenizer

TALK = [
  {"role": "user", "content": "q\u00e9 \x00 \u2028"},
  {"role": "assistant", "content": "a"},
  {"role": "user", "content": "r"},
]
ROWS = [{"prompt": TALK, "chosen": f"yes {i}", "rejected": f"no {i}", "score": i / 2, "tags": []} for i in range(6)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setattr(sources, "cache_dir", lambda: tmp_path / "cache")
  return tmp_path / "cache"


def _jsonl(path, rows):
  data = "".join(json.dumps(row) + "\n" for row in rows).encode()
  path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
  return path


def _load(source, **options):
  return sources.load(source, **({"needs": formats.PAIR} | options))


def test_globs_and_compressed_files_are_read_in_order(tmp_path):
  _jsonl(tmp_path / "b.jsonl.gz", ROWS[3:])
  _jsonl(tmp_path / "a.jsonl", ROWS[:3])
  found = _load(f"jsonl:{tmp_path}/*.jsonl*")
  assert [example.chosen for example in found.examples] == [row["chosen"] for row in ROWS]
  assert [dict(message) for message in found.examples[0].row["prompt"]] == TALK
  assert found.line() == "6 rows (preference, explicit prompt, conversational: 6)"


def test_stored_rows_are_the_same_and_written_once(tmp_path, cache):
  path = _jsonl(tmp_path / "a.jsonl", ROWS)
  stored = _load(f"jsonl:{path}", store_above=0)
  assert stored.examples == _load(f"jsonl:{path}").examples
  folders = list((cache / "rows").iterdir())
  written = sorted((file, file.stat().st_mtime_ns) for file in folders[0].rglob("*.array_record*"))
  assert len(folders) == len(written) == 1
  opened = sources.open_rows(f"jsonl:{path}", store_above=0)
  assert [opened[i].entry for i in (4, 0, -1)] == [ROWS[4], ROWS[0], ROWS[5]] and len(opened[1:3]) == 2
  assert written == sorted((file, file.stat().st_mtime_ns) for file in folders[0].rglob("*.array_record*"))
  _jsonl(path, ROWS[:2])  # other contents are another data set
  assert len(sources.open_rows(f"jsonl:{path}", store_above=0)) == 2


def test_stored_rows_are_read_many_at_once(tmp_path):
  rows = [{"prompt": f"{i}"} for i in range(1000)]
  opened = sources.open_rows(f"jsonl:{_jsonl(tmp_path / 'a.jsonl', rows)}", store_above=0)
  reads, many = [], opened.many
  opened.many = lambda indices: reads.append(len(indices)) or many(indices)
  assert [row.entry for row in opened] == rows
  assert sum(reads) == 1000 and len(reads) < 20


def test_a_broken_write_leaves_nothing(tmp_path):
  def rows():
    yield files.RawRow("x, line 1", {}, "")
    raise OSError("disk full")

  with pytest.raises(OSError, match="disk full"):
    row_store.write(rows(), tmp_path / "set" / "1.0.0")
  assert list((tmp_path / "set").iterdir()) == []


def test_parquet_rows_equal_those_of_json(tmp_path):
  pytest.importorskip("pyarrow")
  import pyarrow.parquet

  rows = [row | {"extra": 1} if i else row for i, row in enumerate(ROWS)]  # a field that the first row lacks
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(reversed(rows))), tmp_path / "a.parquet")
  found = _load(f"parquet:{tmp_path}/a.parquet").examples[::-1]
  assert found == _load(f"jsonl:{_jsonl(tmp_path / 'a.jsonl', rows)}").examples
  (tmp_path / "bad.parquet").write_bytes(b"not parquet")
  with pytest.raises(InputError, match="bad.parquet cannot be read"):
    _load(f"parquet:{tmp_path}/bad.parquet")


def _foreign_set(folder, rows):
  """A TFDS data set with features of its own: messages come back as columns of bytes."""
  from tensorflow_datasets.core import dataset_info
  from tensorflow_datasets.core.sequential_writer import SequentialWriter

  library = row_store.tfds()
  text = library.features.Text()
  features = {"prompt": library.features.Sequence({"role": text, "content": text}), "chosen": text, "rejected": text}
  version = library.core.Version("1.0.0")
  identity = dataset_info.DatasetIdentity(name="talks", version=version, data_dir=str(folder), module_name="x")
  info = dataset_info.DatasetInfo(builder=identity, features=library.features.FeaturesDict(features))
  writer = SequentialWriter(info, max_examples_per_shard=4, file_format="array_record")
  writer.initialize_splits(["train", "test"])
  keep = lambda row: {name: row[name] for name in features}
  writer.add_examples({"train": [keep(row) for row in rows], "test": [keep(row) for row in rows[:2]]})
  writer.close_all()


def test_messages_survive_foreign_tfds_sets(tmp_path, monkeypatch):
  folder = tmp_path / "talks" / "1.0.0"
  folder.mkdir(parents=True)
  _foreign_set(folder, ROWS)
  found = _load(f"tfds_dir:{folder}")
  assert [(e.row["prompt"], e.chosen) for e in found.examples] == [(tuple(TALK), row["chosen"]) for row in ROWS]
  assert len(_load(f"tfds_dir:{folder}:test").examples) == 2
  with pytest.raises(InputError, match="no split 'dev'; it has"):
    _load(f"tfds_dir:{folder}:dev")
  library = row_store.tfds()
  builder = library.builder
  monkeypatch.setattr(library, "builder", lambda name: builder(name, data_dir=str(tmp_path)))
  assert _load("tfds:talks").examples == found.examples
  assert len(_load("tfds:talks:train[:3]").examples) == 3
  with pytest.raises(InputError, match="tfds:nothing cannot be read"):
    _load("tfds:nothing")


def test_a_row_that_the_template_refuses_is_a_bad_row(tmp_path):
  tokenizer = copy.copy(demo_tokenizer.load())
  tokenizer.chat_template = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ m['content'] }}{% endfor %}"
  )
  rows = [{"prompt": f"p {n}", "chosen": "a", "rejected": "b"} for n in range(5)]
  rows[3]["system"] = "Be kind."
  path = _jsonl(tmp_path / "a.jsonl", rows)
  with pytest.raises(InputError, match=r"line 4 is refused by the model's chat template \(System role not supported\)"):
    _load(f"jsonl:{path}", tokenizer=tokenizer)
  found = _load(f"jsonl:{path}", tokenizer=tokenizer, on_bad_row="skip", max_bad_share=0.5)
  assert len(found.examples) == 4 and found.bad[0].place.endswith("line 4")
  assert len(_load(f"jsonl:{path}").examples) == 5
  with pytest.raises(InputError, match="line 4 is refused"):
    prompts.load_rows(f"jsonl:{path}", tokenizer=tokenizer)


def test_parquet_values_without_a_python_type_are_columns(tmp_path):
  pytest.importorskip("pyarrow")
  import pyarrow.parquet

  times = {
    "t": pyarrow.array([1_700_000_000_123_456_789], pyarrow.timestamp("ns")),
    "d": pyarrow.array([123_456_789], pyarrow.duration("ns")),
    "far": pyarrow.array([10**15], pyarrow.timestamp("s")),
    "bag": pyarrow.array([[1_700_000_000_123_456_789]], pyarrow.list_(pyarrow.timestamp("ns"))),
  }
  table = pyarrow.table({"prompt": ["p"], **times})
  pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
  row = _load(f"parquet:{tmp_path}/a.parquet", needs=formats.PROMPT).examples[0].row
  assert row["prompt"] == "p" and set(times) < set(row) and json.dumps(row)
  twice = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["prompt", "prompt"])
  pyarrow.parquet.write_table(twice, tmp_path / "b.parquet")
  with pytest.raises(InputError, match="two columns named 'prompt'"):
    _load(f"parquet:{tmp_path}/b.parquet", needs=formats.PROMPT)


def test_no_tensorflow_is_loaded(tmp_path):
  path = _jsonl(tmp_path / "a.jsonl", ROWS)
  program = (
    "import sys; from qempo_jax.data import sources;"
    "heavy = {'tensorflow_datasets', 'pyarrow', 'huggingface_hub'} & set(sys.modules);"
    f"rows = sources.open_rows('jsonl:{path}', store_above=0); print(len(rows), heavy, 'tensorflow' in sys.modules)"
  )
  environment = os.environ | {"QEMPO_CACHE_DIR": str(tmp_path / "cache")}
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
  assert done.stdout.split("\n")[-2] == "6 set() False"


def test_hub_files_of_the_split_are_read(tmp_path, monkeypatch):
  import huggingface_hub

  _jsonl(tmp_path / "train-0.jsonl", ROWS)
  listed = ["README.md", "data/training_notes.jsonl", "data/test-0.jsonl", "data/train-0.jsonl"]
  monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, name, repo_type: listed)
  monkeypatch.setattr(
    huggingface_hub, "hf_hub_download", lambda name, file, repo_type: str(tmp_path / pathlib.Path(file).name)
  )
  assert len(_load("hf:org/name").examples) == 6
  with pytest.raises(InputError, match="no parquet or JSON Lines file whose name holds the split 'dev'"):
    _load("hf:org/name:dev")


def test_without_a_network_the_hub_is_one_clear_line(monkeypatch):
  import huggingface_hub

  def refuse(*args, **options):
    raise ConnectionError("no route\nand more")

  monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", refuse)
  with pytest.raises(InputError, match=r"hf:org/name cannot be reached \(no route\)") as caught:
    _load("hf:org/name")
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["csv:x", "jsonl:", "jsonl", "tfds_dir:/nowhere", "jsonl:/nowhere/*.jsonl"])
def test_an_unknown_or_absent_source_is_named(source):
  with pytest.raises(InputError, match="is not known|holds no dataset_info|cannot be read"):
    _load(source)


def test_skipped_rows_are_counted_and_too_many_stop(tmp_path):
  path = _jsonl(tmp_path / "a.jsonl", [*ROWS, {"prompt": "p", "chosen": "c"}, *ROWS])
  with pytest.raises(InputError, match=f'{path}, line 7 has no "rejected" response; correct it, or set'):
    _load(f"jsonl:{path}")
  found = _load(f"jsonl:{path}", on_bad_row="skip", max_bad_share=0.1)
  assert (len(found.examples), found.total, len(found.bad)) == (12, 13, 1)
  assert found.line().endswith(f'1 left out, the first: {path}, line 7 has no "rejected" response')
  with pytest.raises(InputError, match=f"1 of 13 rows of jsonl:{path} do not fit.*{path}, line 7 has"):
    _load(f"jsonl:{path}", on_bad_row="skip", max_bad_share=0.05)
  with pytest.raises(InputError, match="use error or skip"):
    _load(f"jsonl:{path}", on_bad_row="drop")
  lines = []
  _jsonl(tmp_path / "b.jsonl", [{"prompt": "p"}, {"prompt": 3}])
  rows = prompts.load_rows(f"jsonl:{tmp_path / 'b.jsonl'}", on_bad_row="skip", max_bad_share=0.5, note=lines.append)
  assert len(rows) == 1 and "1 left out" in lines[0]


def _malformed(rng) -> bytes:
  """A line that can't be a pair."""
  good = json.dumps(ROWS[rng.randrange(6)]).encode()
  letters = lambda: bytes(rng.randrange(256) for _ in range(rng.randrange(1, 40))).replace(b"\n", b" ")
  bad = lambda: rng.choice([None, 3, 1.5, True, [], {}, "", "  ", [[]], [None], [{"role": "user"}], "\ud800", [-1]])
  field = rng.choice(["prompt", "chosen", "rejected"])
  row = dict(ROWS[0])
  kind = rng.randrange(12)
  if kind == 0:
    return b"{" + letters()
  if kind == 1:
    return good[: rng.randrange(1, len(good) - 1)]
  if kind == 2:
    return good.replace(b"yes", b"\xff\xfe")
  if kind == 3:
    return good.replace(b"yes", b"\x00")  # a null byte itself, unescaped
  if kind == 4:
    return good[:-1] + b', "%s": 1}' % field.encode()
  if kind == 5:
    return b"[" * rng.choice([1, 5000])
  if kind == 6:
    return b"9" * rng.choice([1, 6000])
  if kind == 7:
    row.pop(field)
    return json.dumps({"kept": row.pop("prompt", 0), **row} if field != "prompt" else row | {"chosen": "x"}).encode()
  if kind == 8:
    turns = [dict(turn) for turn in TALK]
    turns[rng.randrange(3)]["content"] = ""
    return json.dumps(row | {"prompt": turns}).encode()
  if kind == 9 and rng.random() < 0.005:
    return json.dumps(row | {field: "x" * 2_000_001}).encode()
  if kind == 10:
    return good[:-1] + b', "more": %s}' % rng.choice([b"NaN", b"Infinity", b"-Infinity"])
  return json.dumps(row | {field: bad()}).encode()


@pytest.mark.parametrize("rows", [2_000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_malformed_rows_are_each_named_once(tmp_path, rows):
  rng = random.Random(0)
  lines, good = [], set()
  for number in range(1, rows + 1):
    if number % 2:
      lines.append(json.dumps(ROWS[number % 6]).encode())
      good.add(number)
    else:
      lines.append(_malformed(rng))
  path = tmp_path / "rows.jsonl"
  path.write_bytes(b"\n".join(lines) + b"\n")
  found = _load(f"jsonl:{path}", on_bad_row="skip", max_bad_share=0.6)
  assert found.total == rows and len(found.examples) == len(good) and len(found.bad) == rows // 2
  assert {int(bad.place.rpartition(" ")[2]) for bad in found.bad} == set(range(2, rows + 1, 2))
  assert all(bad.reason for bad in found.bad) and len({bad.reason for bad in found.bad}) > 20
  stored = tmp_path / "part.jsonl"
  stored.write_bytes(b"\n".join(lines[:400]))
  options = {"on_bad_row": "skip", "max_bad_share": 0.6}
  assert _load(f"jsonl:{stored}", store_above=0, **options) == _load(f"jsonl:{stored}", **options)


# File under QEMPO_DATA_DIR: (rows, what every row has), as its README says.
REAL = {
  "gsm8k/train.jsonl.gz": (7473, formats.COMPLETION),
  "gsm8k/test.jsonl.gz": (1319, formats.COMPLETION),
  "math500.jsonl": (500, formats.COMPLETION),
  "mt_bench/question.jsonl": (80, formats.PROMPT),
  "preference/alpaca_eval_gpt4_train.jsonl.gz": (10717, formats.PAIR),
  "preference/alpaca_eval_gpt4_test.jsonl.gz": (1175, formats.PAIR),
  "preference/hh_harmless_base_test.jsonl.gz": (2299, formats.PAIR),
  "preference/hh_helpful_base_test.jsonl.gz": (2333, formats.PAIR),
  "preference/ultrafeedback_sample_train.jsonl.gz": (884, formats.PAIR),
  "preference/ultrafeedback_sample_test.jsonl.gz": (175, formats.PAIR),
  "preference/pandalm_human.jsonl.gz": (760, formats.PAIR),
  "preference/dpo_en_demo.jsonl.gz": (295, formats.PAIR),
  "prompts/noveltybench_curated.jsonl": (100, formats.PROMPT),
  "prompts/noveltybench_wildchat.jsonl": (600, formats.PROMPT),
  "prompts/alpaca_eval.jsonl": (805, formats.PROMPT),
  "prompts/arena_hard_v2_creative_writing.jsonl": (250, formats.PROMPT),
  "prompts/vicuna_bench.jsonl": (80, formats.PROMPT),
  "prompts/self_instruct_user_oriented.jsonl": (252, formats.PROMPT),
  "sentiment/sentence_polarity.jsonl.gz": (10662, formats.PROMPT),
  "sentiment/movie_reviews.jsonl.gz": (2000, formats.COMPLETION),
}


@pytest.mark.skipif("QEMPO_DATA_DIR" not in os.environ, reason="QEMPO_DATA_DIR names no folder of real data")
def test_every_real_file_loads_with_the_rows_its_readme_says():
  folder = pathlib.Path(os.environ["QEMPO_DATA_DIR"])
  assert {str(path.relative_to(folder)) for path in folder.rglob("*.jsonl*")} == set(REAL)
  tokenizer = demo_tokenizer.load()
  for name, (count, needs) in REAL.items():
    found = sources.load(f"jsonl:{folder / name}", needs=needs)
    if needs == formats.PROMPT:
      assert all(tokenization.encode_chat(tokenizer, example.row["prompt"]) for example in found.examples[:8]), name
    else:
      responses = 2 if needs == formats.PAIR else 1
      limits = {"max_prompt_length": 10_000, "max_response_length": 10_000}
      pairs = pair_tokens.encode_pairs(tokenizer, found.examples[:8], responses=responses, **limits)
      packed, mask = pair_tokens.pack_pairs(pairs, range(8), bucket=64, max_length=10_000)
      assert mask.shape == (8, responses, 10_000) and packed.tokens.shape[0] == 8 and mask.any(axis=-1).all(), name
    assert (len(found.examples), found.total) == (count, count), name
    assert len(found.formats) == 1, (name, found.formats)
