"""Stop tokens from every place that names them, tokens that no response may hold, and ids against the embedding."""

import json

import pytest
import tokenizers
import transformers

from configs import base
from experiments.configured import policy as build_policy
from qempo_jax.data import formats
from qempo_jax.data import pair_tokens
from qempo_jax.data import sources
from qempo_jax.data import special_tokens
from qempo_jax.data import tokenization
from qempo_jax.errors import InputError

BYTES = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())  # ids 0 to 255
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # 256, 257, 258
CHATML = (
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _tokenizer(special=SPECIAL, *, plain=(), template=CHATML, eos="<|endoftext|>"):
  """A byte-level BPE without merges."""
  inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={byte: id_ for id_, byte in enumerate(BYTES)}, merges=[]))
  inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  inner.decoder = tokenizers.decoders.ByteLevel()
  inner.add_special_tokens(list(special))
  inner.add_tokens(list(plain))
  found = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=eos)
  found.chat_template = template
  return found


def _folder(path, tokenizer, **files):
  tokenizer.save_pretrained(path)
  for name, content in files.items():
    (path / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
  return path


@pytest.mark.parametrize(
  ("files", "stops"),
  [
    ({}, (256, 258)),
    ({"generation_config": {"eos_token_id": [258, 256]}}, (256, 258)),
    ({"generation_config": {"eos_token_id": 65}}, (65, 256, 258)),
    (
      {"generation_config": {"temperature": 1.0}, "config": {"model_type": "llama", "eos_token_id": [257, 258]}},
      (256, 257, 258),
    ),
    # A default of the model's class, which stands for ordinary text here.
    ({"config": {"model_type": "llama", "eos_token_id": 2}}, (256, 258)),
    ({"generation_config": {"_from_model_config": True, "eos_token_id": 2}}, (256, 258)),
    ({"generation_config": {"eos_token_id": None}, "config": {"model_type": "llama", "eos_token_id": -1}}, (256, 258)),
  ],
)
def test_stop_tokens_are_the_union_of_all_places(tmp_path, files, stops):
  assert tokenization.stop_token_ids(tokenization.load_tokenizer(_folder(tmp_path, _tokenizer(), **files))) == stops


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ('{"eos_token_id": "</s>"}', "eos_token_id='</s>'"),
    ('{"eos_token_id": [true]}', "eos_token_id"),
    ("{", "cannot be read"),
    ("[]", "no JSON object"),
  ],
)
def test_settings_that_cannot_be_read_are_one_line(tmp_path, content, message):
  with pytest.raises(InputError, match=message) as caught:
    tokenization.load_tokenizer(_folder(tmp_path, _tokenizer(), generation_config=content))
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("template", "special", "end"),
  [
    (CHATML, SPECIAL, "<|im_end|>"),
    ("{% for m in messages %}<s>{{ m.content }} </end>{% endfor %}", ["<|endoftext|>", "<s>", "</end>"], "</end>"),
    ("{% for m in messages %}[{{ m.content | trim }}]{% endfor %}", SPECIAL, "<|endoftext|>"),  # text follows
    ("{% for m in messages %}<|im_start|>{{ m.content }}\n{% endfor %}", SPECIAL, "<|endoftext|>"),  # nothing does
    ("{{ raise_exception('no') }}", SPECIAL, "<|endoftext|>"),
    (None, SPECIAL, "<|endoftext|>"),
  ],
)
def test_the_template_names_the_token_that_ends_a_response(template, special, end):
  tokenizer = _tokenizer(special, template=template)
  id_ = tokenizer.convert_tokens_to_ids(end)
  assert special_tokens.end_token_id(tokenizer) == id_ and id_ in tokenization.stop_token_ids(tokenizer)


def test_a_turn_that_ends_with_a_token_of_its_own_counts_though_it_is_not_special():
  tokenizer = _tokenizer(
    ["<|endoftext|>"], plain=["<turn_over>"], template="{% for m in messages %}{{ m.content }}<turn_over>\n{% endfor %}"
  )
  assert tokenization.stop_token_ids(tokenizer) == (256, 257)


def test_forbidden_are_the_special_tokens_that_do_not_end_a_response():
  tokenizer = _tokenizer([*SPECIAL, "<extra>"], plain=["<think>"])
  assert special_tokens.forbidden_token_ids(tokenizer) == (257, 259)
  assert special_tokens.forbidden_token_ids(tokenizer, allowed=["<extra>"]) == (257,)
  assert special_tokens.forbidden_token_ids(tokenizer, vocab_size=259) == (257,)  # Gemma 3's text models lack such rows
  for name in ("<none>", "<think>"):  # the latter is no special token: nothing forbids it
    with pytest.raises(InputError, match=f"sampling.allowed_tokens names '{name}'"):
      special_tokens.forbidden_token_ids(tokenizer, allowed=[name])


@pytest.mark.parametrize(
  ("names", "text"),
  [
    (["a", "<|im_end|>"], "a"),
    (["a", "<|endoftext|>"], "a"),
    (["a"], "a"),  # cut
    (["<extra>", "a", "<|im_start|>", "<|im_end|>"], "<extra>a<|im_start|>"),
    (["<|im_end|>"], ""),
    ([], ""),
  ],
)
def test_rewards_see_all_that_was_sampled_but_the_ending_token(names, text):
  tokenizer = _tokenizer([*SPECIAL, "<extra>"])
  ids = tokenizer.convert_tokens_to_ids(names)
  assert tokenization.decode_response(tokenizer, ids, tokenization.stop_token_ids(tokenizer)) == text


def test_ids_are_held_against_the_embedding(tmp_path):
  tokenizer = _tokenizer(plain=["<think>", "</think>"])
  assert special_tokens.num_tokens(tokenizer, 264) == 261 and special_tokens.num_tokens(tokenizer, 261) is None
  with pytest.raises(
    InputError, match=r"has 261 tokens and the model's embedding 259 rows, so '<think>' \(id 259\)"
  ) as caught:
    special_tokens.num_tokens(tokenizer, 259)
  assert "resize" in str(caught.value) and "\n" not in str(caught.value)
  config = base.get_config()  # of programs that read the tokenizer alone
  config.model.source = str(_folder(tmp_path, tokenizer, config={"model_type": "llama", "vocab_size": 259}))
  with pytest.raises(InputError, match=r"'<think>' \(id 259\)"):
    build_policy.load_tokenizer(config)
  pictures = _tokenizer([*SPECIAL, "<image_soft_token>"])  # Gemma 3's text models have no row for it
  assert special_tokens.num_tokens(pictures, 259) is None


@pytest.mark.parametrize("template", [CHATML, None])
def test_texts_with_a_token_that_has_no_row_are_refused_or_not_scored(tmp_path, template):
  tokenizer = _tokenizer([*SPECIAL, "<image_soft_token>"], template=template)
  encode = lambda prompt, response: pair_tokens.Encoder(tokenizer).response(prompt, response)
  assert 259 in encode("q", "<image_soft_token>")  # a row that is not there
  special_tokens.num_tokens(tokenizer, 259)
  refused = "contain.* '<image_soft_token>', for which the model's embedding has no row"
  for call in (
    lambda: encode("q", "see <image_soft_token>"),
    lambda: tokenization.encode_chat(tokenizer, "<image_soft_token>?"),
  ):
    with pytest.raises(InputError, match=refused):
      call()
  if template:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "q"}\n{"prompt": "<image_soft_token>"}\n')
    with pytest.raises(InputError, match=f"line 2 .*{refused}"):
      sources.load(f"jsonl:{path}", needs=formats.PROMPT, tokenizer=tokenizer)
