"""Makes, of rows of samples, the results of `experiments.evaluate`: all figures that can be had here."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence

from experiments.configured import constraints as build_constraints
from qempo_jax.errors import InputError
from qempo_jax.evaluation import certificate
from qempo_jax.evaluation import clusters
from qempo_jax.evaluation import diversity_metrics
from qempo_jax.evaluation import judging
from qempo_jax.evaluation import protocol
from qempo_jax.evaluation import rows as evaluation_rows
from qempo_jax.evaluation import sentence_encoder
from qempo_jax.evaluation import summary
from qempo_jax.evaluation import syntactic
from qempo_jax.evaluation.rows import task_name
from qempo_jax.rewards import normal_form
from qempo_jax.rewards import words


def results(config, rows: Sequence[Mapping], run: Mapping) -> dict:
  """The summary of the rows, with the metrics that the config asks for and this machine has.

  Args:
    config: a complete config.
    rows: result of `sample_files.read`.
    run: copied into the results.
  """
  e = config.evaluation
  kind, floor = floor_of(config)
  summary.absolute_floors(rows, floor=floor, kind=kind)  # Refused before the encoder is loaded.
  embed, parse, left_out = tools(e)
  max_kl = build_constraints.bound(config, "kl")
  budget = {} if max_kl is None else {build_constraints.label(config): max_kl}
  found = summary.summarise(
    rows,
    floor=floor,
    floor_kind=kind,
    acceptable=e.acceptable,
    max_kl=budget,
    reward_range=tuple(e.reward_range) or None,
    baseline=e.baseline,
    cluster=tuple(e.cluster),
    metrics=diversity_metrics.metrics([row["completion"] for row in rows], embed=embed, parse=parse),
    matched=e.matched,
    look=e.look,
    planned_looks=e.planned_looks or None,
    run=dict(run) | {"left_out": left_out, "words": words.DEFINITION, "same answer": normal_form.DEFINITION},
    num_draws=e.num_draws,
  )
  found["protocols"] = {"guo2024": summary.plain(corpus_figures(rows, embed, parse, e.num_draws, tuple(e.cluster)))}
  if e.judgements:
    judgements = judging.read(e.judgements)
    won = judging.win_rate(judgements, num_draws=e.num_draws)
    controlled = judging.length_controlled_win_rate(judgements, num_draws=e.num_draws)
    judged = {"rate": won.rate._asdict(), "length_controlled": controlled._asdict(), "file": e.judgements}
    found["judging"] = summary.plain(won._asdict() | judged)
  return found


def check(e) -> None:
  """Raises InputError for settings of the evaluation that `results` would refuse, before anything slow."""
  evaluation_rows.check_range(tuple(e.reward_range) or None)
  certificate.level_of_look(0.95, look=e.look, planned_looks=e.planned_looks or None)
  if e.judgements:
    judging.read(e.judgements)
  if e.matched == 1:
    raise InputError("evaluation.matched=1 leaves no two outputs to compare: set it to 2 or more, or 0 for all")
  if e.sample and (e.matched or 0) > e.samples_per_prompt:
    raise InputError(
      f"evaluation.matched={e.matched} is more than evaluation.samples_per_prompt={e.samples_per_prompt}: raise that one too"
    )


def floor_of(config) -> tuple[str, float]:
  """(kind, amount) of the floor to certify: the config's own, the objective's, or not below the reference."""
  e = config.evaluation
  if e.floor is not None:
    return e.floor_kind, e.floor
  bound = build_constraints.bound(config, "quality")
  return ("reference minus", 0.0) if bound is None else ("absolute", bound)


def tools(e) -> tuple[Callable | None, Callable | None, dict[str, str]]:
  """(encoder, parser, why an axis is left out)."""
  embed = parse = None
  left_out = {}
  try:
    embed = sentence_encoder.load() if "semantic" in e.axes else None
  except (InputError, ImportError) as error:
    left_out["semantic"] = str(error)
  if "syntactic" in e.axes:
    parse = lambda sentences: syntactic.parse_with_spacy(sentences, model=e.parser)
    try:
      parse(["A test."])
    except InputError as error:
      parse, left_out["syntactic"] = None, str(error)
  return embed, parse, left_out


def corpus_figures(rows: Sequence[Mapping], embed, parse, num_draws: int, cluster: Sequence[str] = ()) -> dict:
  """{split: {axis: {method: value, interval and sample size}}} by guo2024, one sample size for all methods."""
  found = {}
  for split in dict.fromkeys(row["split"] for row in rows):
    methods: dict[str, dict[str, list[str]]] = {}
    for row in rows:
      if row["split"] == split and row["seed"] == min(r["seed"] for r in rows if r["method"] == row["method"]):
        methods.setdefault(row["method"], {}).setdefault(task_name(row), []).append(row["completion"])
    shared = sorted(set.intersection(*(set(of_method) for of_method in methods.values())))
    texts = {name: [of_method[prompt] for prompt in shared] for name, of_method in methods.items()}
    found[split] = {}
    first = {task_name(row): row for row in reversed(rows) if row["split"] == split}
    of_prompts = clusters.of_rows([first[prompt] for prompt in shared], cluster, split) if shared else None
    for axis, tool in (("lexical", True), ("semantic", embed), ("syntactic", parse)):
      if tool is None or not shared:
        continue
      try:
        items = texts if axis == "lexical" else _sentences(texts, parse if axis == "syntactic" else None)
        settings = {"embed": embed, "num_draws": num_draws, "clusters": of_prompts}
        figures = protocol.diversity(items, axis=axis, protocol="guo2024", **settings)
      except InputError:  # too short for an n-gram or a pair: no such figure
        continue
      found[split][axis] = {
        name: {"mean": f.value, "low": f.interval.low, "high": f.interval.high, "sample_size": f.sample_size}
        for name, f in figures.items()
      }
  return found


def _sentences(texts: Mapping[str, list[list[str]]], parse) -> dict[str, list[list]]:
  split = {
    name: [[sentence for text in samples for sentence in protocol.sentences(text)] for samples in prompts]
    for name, prompts in texts.items()
  }
  if parse is None:
    return split
  return {name: [list(parse(sentences)) for sentences in prompts] for name, prompts in split.items()}
