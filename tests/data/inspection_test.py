"""Inspection of examples: SmolLM2's tokenizer, and pad == eos, without and with a BOS."""

import json
import os
import pathlib

import pytest
import tokenizers
import transformers

from experiments import cli
from experiments import inspect_data
from qempo_jax.data import inspection
from qempo_jax.data import pair_tokens
from qempo_jax.data import special_tokens
from qempo_jax.data import tokenization
from qempo_jax.data.examples import Message
from qempo_jax.data.examples import Preference
from qempo_jax.errors import InputError
from tests.data import demo_tokenizer

CHAT = (
  "{% for m in messages %}<u>{{ m['content'] }}{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
  "{% if add_generation_prompt %}<u>{% endif %}"
)
LIMITS = {"max_prompt_length": 40, "max_response_length": 20}


def _tiny(*, template, bos=False, adds=None, pad="</s>"):
  """Letters as tokens, and "!a" merged into one; `adds` is what the tokenizer itself puts around a text."""
  letters = "abcdefghijklmnopqrstuvwxyz! "
  vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", "<u>", "<pad>", *letters, "!a"])}
  fast = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[("!", "a")]))
  fast.add_special_tokens(["<s>", "</s>", "<u>", "<pad>"])
  fast.decoder = tokenizers.decoders.Fuse()
  if adds:
    special = [(token, vocabulary[token]) for token in ("<s>", "</s>")]
    fast.post_processor = tokenizers.processors.TemplateProcessing(single=adds, special_tokens=special)
  names = {"eos_token": "</s>", "pad_token": pad} | ({"bos_token": "<s>"} if bos else {})
  found = transformers.PreTrainedTokenizerFast(tokenizer_object=fast, **names)
  found.chat_template = template
  return found


def _parts(tokens):
  return "".join(f"{token.piece}/{token.part[0]}{'*' * token.trained} " for token in tokens).strip()


PAIR = Preference({"prompt": "hi"}, "yo", "no</s>")


@pytest.mark.parametrize("pad", ["</s>", "<pad>"])
def test_the_ending_token_is_trained_even_where_it_is_the_padding(pad):
  tokenizer = _tiny(template=CHAT, pad=pad)
  found = inspection.explain(tokenizer, PAIR)
  assert _parts(found["prompt"]) == "<u>/t h/u i/u <u>/t"
  assert _parts(found["chosen"]) == "y/r* o/r* </s>/e*" and _parts(found["rejected"]) == "n/r* o/r* </s>/e*"
  assert inspection.faults(found, **LIMITS) == []


@pytest.mark.parametrize(
  ("options", "prompt", "number"),
  [
    ({"template": CHAT}, "<u>/t h/u i/u <u>/t", 0),
    ({"template": "<s>" + CHAT, "bos": True}, "<s>/t <u>/t h/u i/u <u>/t", 1),
    ({"template": "<s>" + CHAT, "bos": True, "adds": "<s> $0"}, "<s>/t <u>/t h/u i/u <u>/t", 1),
    ({"template": "<s><s>" + CHAT, "bos": True}, "<s>/t <s>/t <u>/t h/u i/u <u>/t", 2),
    ({"template": None, "bos": True, "adds": "<s> $0"}, "<s>/s h/u i/u", 1),
    ({"template": None, "bos": True, "adds": "<s> $0 </s>"}, "<s>/s h/u i/u", 1),
    ({"template": None}, "h/u i/u", 0),
  ],
)
def test_a_bos_is_there_as_often_as_the_template_says(options, prompt, number):
  tokenizer = _tiny(**options)
  found = inspection.explain(tokenizer, PAIR)
  assert _parts(found["prompt"]) == prompt and _parts(found["chosen"]) == "y/r* o/r* </s>/e*"
  summary = inspection.summarise(tokenizer, [PAIR] * 3, **LIMITS)
  assert summary.bos == {number: 3} and summary.endings == 0
  assert any("begin with two BOS tokens" in line for line in summary.lines()) == (number > 1)


def test_faults_of_every_kind_are_counted():
  tokenizer = _tiny(template=None)
  examples = [
    PAIR,
    Preference({"prompt": "x" * 41}, "y", "n"),
    Preference({"prompt": "hi"}, "y" * 20, "n"),  # the ending token is the 21st
    Preference({"prompt": "hi!"}, "a", "b"),  # "!" and "a" would be one token
    Preference({"prompt": "hi"}, "y</s>x", "n"),
    Preference({"prompt": "hi"}, (5, 6), (7, 1)),  # sampled ids, the first cut before it ended
  ]
  found = inspection.summarise(tokenizer, examples, **LIMITS)
  assert found[:7] == (6, 1, 1, 1, 1, 0, 2)
  assert found.prompt_tokens == ((41 + 2 * 4 + 3) / 6, 41) and found.response_tokens[1] == 21
  notes = [inspection.faults(inspection.explain(tokenizer, example), **LIMITS) for example in examples]
  assert [len(lines) for lines in notes] == [0, 1, 1, 0, 1, 1]
  assert notes[2] == ["chosen response of 21 tokens, over 20: dropped"]
  assert notes[5] == ["chosen response with 0 end tokens and none at the end"]


def test_pairs_that_the_policy_could_not_have_written_are_counted():
  tokenizer = _tiny(template=None)
  forbidden = special_tokens.forbidden_token_ids(tokenizer)
  examples = [PAIR, Preference({"prompt": "hi"}, "y<u>o", "no"), Preference({"prompt": "h<u>i"}, "yo", "n<pad>o<u>")]
  limits = LIMITS | {"forbidden": forbidden}
  found = inspection.summarise(tokenizer, examples, **limits)
  assert (found.examples, found.forbidden, found.endings) == (3, 2, 0)
  assert "2 examples with a special token in a response (sampling.allowed_tokens), dropped" in found.lines()
  explained = [inspection.faults(inspection.explain(tokenizer, example), **limits) for example in examples]
  assert explained[0] == [] and explained[1] == [
    "chosen response with the special token <u>: dropped (sampling.allowed_tokens)"
  ]
  encoded = pair_tokens.encode_pairs(tokenizer, examples, responses=2, **limits)
  assert (len(encoded.rows), encoded.forbidden, encoded.dropped, encoded.ended) == (1, 2, 0, 0)
  with pytest.raises(InputError, match="0 that end early and 2 with special tokens"):
    pair_tokens.encode_pairs(tokenizer, examples[1:], responses=2, **limits)


def test_every_ending_of_a_text_is_replaced_by_the_one_that_is_trained():
  tokenizer = _tiny(template=CHAT)
  special_tokens.declare_stop_ids(tokenizer, [{"eos_token_id": [1, 3]}])  # </s> and <pad>
  encoder, end = pair_tokens.Encoder(tokenizer), tokenizer.convert_tokens_to_ids("</s>")
  expected = encoder.response("hi", "yo")
  assert expected[-1] == end
  for text in ("yo</s>", "yo<pad>", "yo<pad></s>", "yo</s><pad><pad>"):
    assert encoder.response("hi", text) == expected


def test_the_tokens_of_a_sample_are_held_against_those_of_its_text():
  tokenizer = _tiny(template=CHAT)
  ids = lambda *names: tokenizer.convert_tokens_to_ids(list(names))
  for names, canonical in (
    (["!a", "</s>"], True),
    (["!", "a", "</s>"], False),
    (["!a"], True),  # cut
    (["y", "!", "a"], False),
    (["</s>"], True),
  ):
    text = tokenization.decode_response(tokenizer, ids(*names), tokenization.stop_token_ids(tokenizer))
    assert pair_tokens.Encoder(tokenizer).is_canonical("hi", ids(*names), text) == canonical


def test_scores_against_the_pair_and_equal_tokens_are_counted():
  scored = [(9, 2), (5, 5), (2, 9), ("7.5", "8"), (None, 3), (True, 0)]
  rows = [{"prompt": "hi", "score_chosen": chosen, "score_rejected": rejected} for chosen, rejected in scored]
  examples = [*(Preference(row, "yo", "no") for row in rows), Preference({"prompt": "hi"}, "a", "a</s>")]
  examples.append(Preference({"prompt": "hi", "chosen_rating": 1.0, "rejected_rating": 2.0}, "yo", "no"))
  found = inspection.summarise(_tiny(template=None), examples, **LIMITS)
  assert (found.alike, found.tied, found.reversed) == (1, 1, 3)
  assert "3 pairs whose rejected response has the higher score (reversed)" in found.lines()


def test_smollm2s_conversation_is_taken_apart():
  tokenizer = demo_tokenizer.load()
  talk = tuple(
    Message(role=role, content=content)
    for role, content in (("system", "Be brief."), ("user", "Hi"), ("assistant", "Yes?"), ("user", "Name a fruit."))
  )
  found = inspection.explain(tokenizer, Preference({"prompt": talk}, "Fig", "A stone"))
  text = lambda part: "".join(token.piece for token in found["prompt"] if token.part == part)
  assert [text(role) for role in ("system", "user", "assistant")] == ["Be brief.", "HiName a fruit.", "Yes?"]
  assert "".join(token.piece for token in found["prompt"][-4:]) == "<|im_start|>assistant\\n"
  assert not any(token.trained for token in found["prompt"]) and all(token.trained for token in found["chosen"])
  assert [token.part for token in found["rejected"]] == ["response"] * (len(found["rejected"]) - 1) + ["end"]
  assert found["chosen"][-1].piece == "<|im_end|>"


def test_the_program_prints_tokens_and_a_summary(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(tokenization, "load_tokenizer", lambda path: demo_tokenizer.load())
  path = tmp_path / "pairs.jsonl"
  rows = [{"prompt": f"Say {word}", "chosen": word, "rejected": "No."} for word in ("fig", "plum")]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  config = pathlib.Path(inspect_data.__file__).parents[1] / "configs" / "offline_dpo.py"
  argv = [f"--config={config}", f"--config.data.source=jsonl:{path}", "--config.offline.pairs=source"]
  cli.run(inspect_data.main, description="", example="", argv=argv, needs_workdir=False)
  out = capsys.readouterr().out
  assert "2 rows (preference, explicit prompt, standard: 2)" in out
  assert "     2  loss  end        <|im_end|>" in out and "0 responses without exactly one" in out
  assert "BOS tokens in a prompt: 1 in 2" in out and "padding" in out


@pytest.mark.skipif("QEMPO_DATA_DIR" not in os.environ, reason="QEMPO_DATA_DIR names no folder of real data")
def test_real_pairs_have_one_ending_each():
  from qempo_jax.data import formats
  from qempo_jax.data import sources

  tokenizer = demo_tokenizer.load()
  folder = pathlib.Path(os.environ["QEMPO_DATA_DIR"]) / "preference"
  pairs = sources.load(f"jsonl:{folder}/ultrafeedback_sample_test.jsonl.gz", needs=formats.PAIR).examples
  found = inspection.summarise(tokenizer, pairs, max_prompt_length=512, max_response_length=512)
  assert found.examples == 175 and found.endings == found.early_ends == 0 and found.bos == {1: 175}
