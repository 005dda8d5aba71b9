"""Check for rows that a model's chat template refuses, done while rows are read, so that errors name file and line."""

from collections.abc import Callable
from typing import Any

from qempo_jax.data.examples import Preference
from qempo_jax.data.examples import RowError
from qempo_jax.data.examples import Scored


def checker(tokenizer: Any) -> Callable[[Preference | Scored], None] | None:
  """Returns a function that raises RowError if the tokenizer's template refuses a row; None without a template.

  It renders the prompt with the header of the assistant's turn, and the conversation with each response. A template may
  refuse a system message, roles that do not alternate, or a content.
  """
  if tokenizer is None or not getattr(tokenizer, "chat_template", None):
    return None
  import jinja2

  def render(messages, **options) -> None:
    try:
      tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, IndexError) as error:
      reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
      raise RowError(f"is refused by the model's chat template ({reason})") from error

  def check(example: Preference | Scored) -> None:
    prompt = example.row["prompt"]
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    render(turns, add_generation_prompt=True)
    for response in example.responses if isinstance(example, Scored) else (example.chosen, example.rejected):
      if isinstance(response, str):
        render([*turns, {"role": "assistant", "content": response}])

  return check
