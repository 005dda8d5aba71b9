"""Data sources, each opened by one string, and the result of reading one.

  jsonl:PATH, parquet:PATH        local files, globs, .gz; bucket addresses such as gs:// with cloud access
  tfds:NAME[/CONFIG][:SPLIT]      a TensorFlow Datasets data set, prepared or downloaded
  tfds_dir:FOLDER[:SPLIT]         a prepared data set by its folder
  hf:ORG/NAME[:SPLIT]             parquet or JSON Lines files of a Hugging Face data set

$NAME in a source is an environment variable.
"""

from collections.abc import Sequence
import os
import pathlib
import re
from typing import Any
from typing import NamedTuple

from qempo_jax.data import files
from qempo_jax.data import formats
from qempo_jax.data import row_store
from qempo_jax.data import templates
from qempo_jax.data.examples import Preference
from qempo_jax.data.examples import RowError
from qempo_jax.data.examples import Scored
from qempo_jax.data.files import RawRow
from qempo_jax.errors import InputError
from qempo_jax.models.demo_model import cache_dir
from qempo_jax.paths import expand_path

KINDS = "jsonl:PATH, parquet:PATH, tfds:NAME[/CONFIG][:SPLIT], tfds_dir:FOLDER[:SPLIT] or hf:ORG/NAME[:SPLIT]"
# Bytes of local files beyond which their rows are kept on disk; smaller files are read into memory.
STORE_ABOVE = 16_000_000

_VARIABLE = re.compile(r"\$\w+|\$\{\w+\}")


class BadRow(NamedTuple):
  """A row that does not fit: where it stands, and why."""

  place: str
  reason: str


class Loaded(NamedTuple):
  """The rows of a source that fit.

  Attributes:
    examples: in the source's order.
    total: rows there are, the bad ones included.
    formats: rows of each format.
    bad: the rows left out.
  """

  examples: list[Preference | Scored]
  total: int
  formats: dict[str, int]
  bad: list[BadRow]

  def line(self) -> str:
    """Formats the numbers of rows read and skipped, for the user."""
    shapes = "; ".join(f"{name}: {count:,}" for name, count in self.formats.items())
    found = f"{self.total:,} rows ({shapes})"
    if self.bad:
      found += f"; {len(self.bad):,} left out, the first: {self.bad[0].place} {self.bad[0].reason}"
    return found


def load(
  source: str,
  *,
  needs: str,
  on_bad_row: str = "error",
  max_bad_share: float = 0.01,
  store_above: int = STORE_ABOVE,
  tokenizer: Any = None,
) -> Loaded:
  """Reads every row of a source.

  Args:
    source: one of the forms above.
    needs: of every row: `formats.PROMPT`, COMPLETION, PAIR or SCORED.
    on_bad_row: "error" stops at a row that does not fit; "skip" leaves it out and counts it.
    max_bad_share: share of skipped rows beyond which nothing is loaded.
    store_above: as for `open_rows`.
    tokenizer: of the model; a row that its chat template refuses does not fit. None to render nothing.

  Returns:
    The rows that fit, and a count of the others.

  Raises:
    InputError: the source can't be read or holds no rows, or too many of them are bad; names the first.
  """
  if on_bad_row not in ("error", "skip"):
    raise InputError(f"data.on_bad_row={on_bad_row!r} is not known; use error or skip")
  raw, examples, counts, bad = open_rows(source, store_above=store_above), [], {}, []
  family, check = None, templates.checker(tokenizer)
  for place, entry, error in raw:
    try:
      if error:
        raise RowError(error)
      name, example = formats.read(entry, needs=needs)
      family = family or formats.family(name)
      if formats.family(name) != family:
        raise RowError(f"has the format {name!r}, and the rows before it {next(iter(counts))!r}")
      if check:
        check(example)
    except RowError as problem:
      if on_bad_row == "error":
        raise InputError(
          f"{place} {problem}; correct it, or set data.on_bad_row=skip (and data.max_bad_share for many)"
        ) from problem
      bad.append(BadRow(place, str(problem)))
      continue
    examples.append(example)
    counts[name] = counts.get(name, 0) + 1
  if not raw:
    raise InputError(f"{source.partition(':')[2]} holds no rows")
  if len(bad) > max_bad_share * len(raw) or not examples:
    shown = "; ".join(f"{place} {reason}" for place, reason in bad[:3])
    raise InputError(
      f"{len(bad):,} of {len(raw):,} rows of {source} do not fit, more than data.max_bad_share={max_bad_share}: {shown}"
    )
  return Loaded(examples, len(raw), counts, bad)


def open_rows(source: str, *, store_above: int = STORE_ABOVE) -> Sequence[RawRow]:
  """The rows of a source as they stand there, with random access.

  Args:
    source: one of the forms above.
    store_above: bytes. Local files larger than this become an ArrayRecord data set in the cache folder, once for
      each contents; smaller ones are held in memory. The rows are the same.

  Raises:
    InputError: the source is not known or can't be read, or a variable in it is not set.
  """
  kind, _, rest = os.path.expandvars(source).partition(":")
  if not rest or kind not in _OPENERS:
    raise InputError(f"data.source={source!r} is not known; use open_list, countdown, {KINDS}")
  if variable := _VARIABLE.search(rest):
    raise InputError(
      f"{source!r} names the environment variable {variable[0]}, which is not set; set it, or give the path"
    )
  return _OPENERS[kind](rest, store_above)


def _local(kind: str):
  def open_files(pattern, store_above):
    return _from_files(files.matching(pattern), kind, store_above)

  return open_files


def _from_files(paths, kind, store_above) -> Sequence[RawRow]:
  if sum(path.stat().st_size for path in paths) <= store_above:
    return list(files.rows(paths, kind))
  folder = cache_dir() / "rows" / f"{files.content_hash(paths)}-{kind}" / row_store.VERSION
  if not (folder / "dataset_info.json").is_file():
    row_store.write(files.rows(paths, kind), folder)
  return row_store.open_folder(folder, "train")


def _tfds_folder(rest, store_above):
  del store_above
  if expand_path(rest).is_dir():
    return row_store.open_folder(rest, "train")
  folder, _, split = rest.rpartition(":")
  return row_store.open_folder(folder or rest, split if folder else "train")


def _tfds(rest, store_above):
  del store_above
  name, _, split = rest.partition(":")
  library = row_store.tfds()
  with row_store.reading(f"tfds:{name}"):
    builder = library.builder(name)
    if not builder.info.splits:
      builder.download_and_prepare(file_format="array_record")
    return row_store.from_builder(builder, split or "train", f"tfds:{name}")


def _hub(rest, store_above):
  """The files of one split: those whose path names it."""
  name, _, split = rest.partition(":")
  split = split or "train"
  try:
    import huggingface_hub
  except ImportError as error:
    raise InputError("hf: sources need huggingface_hub: pip install 'qempo-jax[convert]'") from error
  try:
    listed = huggingface_hub.HfApi().list_repo_files(name, repo_type="dataset")
    kind, chosen = _split_files(name, split, sorted(listed))
    paths = [pathlib.Path(huggingface_hub.hf_hub_download(name, file, repo_type="dataset")) for file in chosen]
  except InputError:
    raise
  except Exception as error:  # The hub's client raises errors of its own, of httpx and of the system.
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
    raise InputError(
      f"hf:{name} cannot be reached ({reason}); check the name and the network, or copy its files here and use"
      " parquet:PATH or jsonl:PATH"
    ) from error
  return _from_files(paths, kind, store_above)


def _split_files(name, split, listed):
  """(kind, files) of a split, which stands as a word of its own in their paths: train-0.parquet, data/train/0.jsonl."""
  word = re.compile(rf"(^|[/_.-]){re.escape(split)}([/.-]|_\d)")
  for kind, suffixes in files.SUFFIXES.items():
    if found := [file for file in listed if file.removesuffix(".gz").endswith(suffixes) and word.search(file)]:
      return kind, found
  raise InputError(f"hf:{name} has no parquet or JSON Lines file whose name holds the split {split!r}")


_OPENERS = {"jsonl": _local("jsonl"), "parquet": _local("parquet"), "tfds": _tfds, "tfds_dir": _tfds_folder, "hf": _hub}
