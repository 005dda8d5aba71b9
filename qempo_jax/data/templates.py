"""Chat templates: rendering with a fixed date, default values of their variables, and rows that a template refuses."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import datetime
import functools
import inspect
import json
import re
from typing import Any

from qempo_jax.data import examples
from qempo_jax.data.examples import Preference
from qempo_jax.data.examples import RowError
from qempo_jax.data.examples import Scored
from qempo_jax.errors import InputError

# Column with the variables of the chat template that a row sets.
OPTIONS = "chat_template_kwargs"
# Date that templates print as today's, where none is set: token ids must not depend on the day.
DATE = "2025-01-01"
# Attribute of a loaded tokenizer that holds its date.
_DATE = "template_date"
# Attribute of a loaded tokenizer: tokens, by text, for which the model's embedding has no row.
ROWLESS = "tokens_without_row"
_DIRECTIVE = re.compile(r"%[-_^#0]?[A-Za-z]")


def render(
  tokenizer: Any, messages: Sequence[Mapping[str, str]], *, header: bool, options: Mapping[str, Any] | None = None
) -> str:
  """A conversation as text.

  Args:
    tokenizer: of the model, with a chat template.
    messages: with role and content.
    header: append the header of the assistant's next turn.
    options: variables of the template, such as `enable_thinking`; they win over the tokenizer's defaults.

  Raises:
    InputError: the template refuses the messages.
  """
  import jinja2

  template, given = tokenizer.chat_template, dict(options or {})
  if isinstance(template, str) and "strftime_now" in template:
    given["chat_template"] = _dated(template, getattr(tokenizer, _DATE, DATE))
  try:
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=header, **given)
    if token := rowless(tokenizer, text):
      raise ValueError(f"they contain {token!r}, for which the model's embedding has no row")
    return text
  except (jinja2.TemplateError, TypeError, ValueError, KeyError, IndexError) as error:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
    raise InputError(f"the chat template refuses the messages ({reason}): check their roles and contents") from error


def rowless(tokenizer: Any, text: str) -> str | None:
  """The first token of a text for which the model's embedding has no row, such as an image's place; None if all have one."""
  return next((token for token in getattr(tokenizer, ROWLESS, ()) if token in text), None)


def turns(prompt: str | Sequence[Mapping[str, str]], response: str | None = None) -> list[Mapping[str, str]]:
  """Messages of a prompt (a text is one user message), and of the assistant's response."""
  found = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
  return found if response is None else [*found, {"role": "assistant", "content": response}]


def configure(tokenizer: Any, *, options: Mapping[str, Any], date: str = DATE) -> None:
  """Gives variables of a tokenizer's chat template default values, and the template its date.

  The defaults become part of the template's text, and so of exported tokenizers.

  Args:
    tokenizer: changed in place.
    options: variable -> value, of JSON's types.
    date: "YYYY-MM-DD", which the template prints as today's.

  Raises:
    InputError: no template reads a variable of that name, or the date is none.
  """
  try:
    datetime.date.fromisoformat(date)
  except ValueError as error:
    raise InputError(f"model.template_date={date!r} is no date; write it as YYYY-MM-DD") from error
  setattr(tokenizer, _DATE, date)
  if not options:
    return
  try:
    check_options(options)
  except RowError as error:
    raise InputError(f"model.chat_template_kwargs: a template {error}") from error
  template = getattr(tokenizer, "chat_template", None)
  if not isinstance(template, str):
    raise InputError("model.chat_template_kwargs is set, and the tokenizer has no single chat template; leave it empty")
  if unread := unread_options(template, options):
    raise InputError(f"model.chat_template_kwargs sets {unread[0]!r}, which the chat template never reads")
  lines = [f"{{%- if {name} is not defined %}}{{%- set {name} = {_literal(options[name])} %}}" for name in options]
  tokenizer.chat_template = "{%- endif %}".join(lines) + "{%- endif %}\n" + template


def options_of(row: Mapping[str, Any]) -> dict[str, Any]:
  """Variables of the chat template that a row sets, by the column OPTIONS; nulls, as parquet files have them, are absent.

  Raises:
    RowError: it is no object, nor the JSON of one, or names what is no variable.
  """
  value = row.get(OPTIONS)
  if isinstance(value, str) and value.strip():
    try:
      value = json.loads(value)
    except ValueError:
      pass  # refused below as a text
  if examples.is_empty(value):
    return {}
  check_options(value)
  return {name: item for name, item in value.items() if item is not None}


def check_options(options: Any) -> None:
  """Raises RowError unless template variables are an object whose names a template may read."""
  if not isinstance(options, Mapping):
    raise RowError(f'has a "{OPTIONS}" that is not an object of template variables')
  for name in options:
    if not isinstance(name, str) or not name.isidentifier() or name in _reserved():
      raise RowError(f'has a "{OPTIONS}" with {name!r}, which is no variable of a chat template')


def unread_options(template: Any, options: Mapping[str, Any]) -> list[str]:
  """Names of the variables that occur nowhere in a template."""
  return [name for name in options if not re.search(rf"\b{re.escape(name)}\b", str(template))]


def checker(tokenizer: Any) -> Callable[[Preference | Scored], None] | None:
  """Returns a function that raises RowError if the tokenizer's template refuses a row; None without a template.

  It renders the prompt with the header of the assistant's turn, and the conversation with each response. A template may
  refuse a system message, roles that do not alternate, or a content. A row's variables must be those of the template.
  """
  if tokenizer is None or not getattr(tokenizer, "chat_template", None):
    return None

  def check(example: Preference | Scored) -> None:
    options, prompt = options_of(example.row), example.row["prompt"]
    if unread := unread_options(tokenizer.chat_template, options):
      raise RowError(f'has a "{OPTIONS}" with {unread[0]!r}, which the model\'s chat template never reads')
    responses = example.responses if isinstance(example, Scored) else (example.chosen, example.rejected)
    try:
      render(tokenizer, turns(prompt), header=True, options=options)
      for response in responses:
        if isinstance(response, str):
          render(tokenizer, turns(prompt, response), header=False, options=options)
    except InputError as error:
      reason = str(error).partition("(")[2].rpartition(")")[0]
      raise RowError(f"is refused by the model's chat template ({reason})") from error

  return check


def _dated(template: str, date: str) -> str:
  """A template in which `strftime_now` gives a fixed date, at midnight."""
  day = datetime.datetime.fromisoformat(date)
  replaced = "".join(
    f" | replace({directive!r}, {day.strftime(directive)!r})" for directive in sorted(set(_DIRECTIVE.findall(template)))
  )
  return f"{{%- macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{%- endmacro %}}\n{template}"


def _literal(value: Any) -> str:
  """A value of JSON's types as Jinja writes it."""
  if value is None or isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, Mapping):
    return "{" + ", ".join(f"{json.dumps(str(key))}: {_literal(item)}" for key, item in value.items()) + "}"
  if isinstance(value, list | tuple):
    return "[" + ", ".join(map(_literal, value)) + "]"
  return json.dumps(value, ensure_ascii=False)


@functools.cache
def _reserved() -> frozenset[str]:
  """Names that belong to transformers' own rendering."""
  import transformers

  return frozenset(inspect.signature(transformers.PreTrainedTokenizerBase.apply_chat_template).parameters) | {
    "messages"
  }
