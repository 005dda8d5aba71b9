"""Pairs from files and answer sets, and as tokens."""

import gzip
import json
import os
import pathlib

import numpy as np
import pytest

from qempo_jax.data import pair_tokens
from qempo_jax.data import preferences
from qempo_jax.data import prompts
from qempo_jax.data import scored
from qempo_jax.errors import InputError
from qempo_jax.rewards import open_list
from tests.data import demo_tokenizer


class LetterTokenizer:
  """A letter a token, a chat template of brackets, and one token that merges at the seam: a blank and a letter."""

  chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}{% if add_generation_prompt %}:{% endif %}"
  eos_token_id = ord("]")

  def get_vocab(self):
    return {chr(index): index for index in range(128)}

  def apply_chat_template(self, messages, tokenize, add_generation_prompt=False):
    del tokenize
    return "".join(f"[{m['content']}]" for m in messages) + ":" * add_generation_prompt

  def encode(self, text, add_special_tokens=False):
    del add_special_tokens
    merged = text.replace(":!", "\x01")  # the header's last letter merges with an exclamation mark
    return [ord(letter) for letter in merged]

  def decode(self, ids):
    return "".join(map(chr, ids)).replace("\x01", ":!")


def _write(path, *entries):
  path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
  return path


def _message(role, content):
  return {"role": role, "content": content}


TURNS = [_message("system", "S"), _message("user", "q"), _message("assistant", "a"), _message("user", "again")]


def test_strings_messages_ids_and_columns_are_read(tmp_path):
  path = _write(
    tmp_path / "pairs.jsonl",
    {"prompt": "p", "chosen": "good\u2028line", "rejected": "bad", "answer": 3},
    {"prompt": [_message("user", "p")], "chosen": [_message("assistant", "good")], "rejected": [4, 2]},
    {"prompt": TURNS, "chosen": "x", "rejected": "y"},
  )
  first, second, third = preferences.jsonl_preferences(path, rejected=True)
  assert first == ({"split": "train", "prompt": "p", "answer": 3}, "good\u2028line", "bad")
  assert second[0]["prompt"] == "p" and second[1:] == ("good", (4, 2))
  assert [dict(message) for message in third.row["prompt"]] == TURNS
  assert (
    len(preferences.prompt_rows([pair.row for pair in (first, second, third)])) == 3
  )  # the answer belongs to the task


def test_compressed_files_and_completions_are_read(tmp_path):
  path = tmp_path / "rows.jsonl.gz"
  path.write_bytes(gzip.compress(b'{"prompt": "p", "completion": "c"}\n\n'))
  assert preferences.jsonl_preferences(path, rejected=False) == [({"split": "train", "prompt": "p"}, "c", None)]


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("{", "line 1 is not JSON"),
    ("[1]", "line 1 is not an object"),
    ('{"chosen": "a", "rejected": "b"}', 'line 1 has no "prompt", and chosen and rejected share no beginning'),
    ('{"chosen": "a"}', 'line 1 has no "prompt"'),
    ('{"prompt": "p", "chosen": "a", "rejected": "a"}', "same text as chosen and as rejected"),
    ('{"prompt": "p", "prompt": "q", "chosen": "a", "rejected": "b"}', "'prompt' appears twice"),
    ('{"prompt": "\\ud800", "chosen": "a", "rejected": "b"}', "half a character"),
    ('{"prompt": "p", "chosen": "a"}', 'line 1 has no "rejected"'),
    ('{"prompt": 3, "chosen": "a", "rejected": "b"}', 'has a "prompt" that is a number'),
    ('{"prompt": [{"role": "assistant", "content": "a"}], "chosen": "a", "rejected": "b"}', "does not end with a user"),
    ('{"prompt": "p", "chosen": "", "rejected": "b"}', 'has an empty "chosen"'),
    (
      '{"prompt": "p", "chosen": "a", "rejected": [{"role": "user", "content": "b"}]}',
      '"rejected" that is not one assistant',
    ),
    ("", "holds no rows"),
  ],
)
def test_a_bad_row_is_named(tmp_path, line, message):
  path = tmp_path / "pairs.jsonl"
  path.write_text(line + "\n")
  with pytest.raises(InputError, match=message):
    preferences.jsonl_preferences(path, rejected=True)


def test_an_absent_or_damaged_file_is_named(tmp_path):
  with pytest.raises(InputError, match="nowhere.jsonl cannot be read"):
    preferences.jsonl_preferences(tmp_path / "nowhere.jsonl", rejected=True)
  (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b"{}" * 999)[:-9])
  with pytest.raises(InputError, match="cut.jsonl.gz cannot be read"):
    preferences.jsonl_preferences(tmp_path / "cut.jsonl.gz", rejected=True)


def test_answer_set_pairs_are_right_and_wrong_for_the_reward():
  rows = prompts.open_list_rows("train")[::8]
  found = preferences.open_list_preferences(rows, per_prompt=20, seed=0)
  score = lambda texts: open_list.open_list_reward(
    [], texts, set_name=[preference.row["set_name"] for preference in found]
  )
  assert len(found) == 20 * len(rows)
  assert set(score([p.chosen for p in found])) == {1.0} and set(score([p.rejected for p in found])) == {0.0}
  assert found == preferences.open_list_preferences(rows, per_prompt=20, seed=0)
  assert found != preferences.open_list_preferences(rows, per_prompt=20, seed=1)


def test_sampled_pairs_join_the_best_with_the_worst():
  responses = [np.array([i, 9]) for i in range(5)]
  found = preferences.sampled_preferences({"prompt": "p"}, responses, [0.5, 1.0, 0.0, 0.5, 0.2], most=9)
  assert [pair[1:] for pair in found] == [((1, 9), (2, 9)), ((0, 9), (4, 9))]
  assert preferences.sampled_preferences({"prompt": "p"}, responses, [1.0] * 5, most=9) == []


def test_answers_are_set_against_bad_samples():
  row = prompts.open_list_rows("train")[0]
  pairs = lambda rewards: preferences.answers_against_samples(
    row, [np.array([i, 9]) for i in range(4)], rewards, per_prompt=30, seed=(0, 1)
  )
  found = pairs([1.0, 0.0, 0.0, 1.0])
  assert len(found) == 30 and {pair.rejected for pair in found} == {(1, 9), (2, 9)}
  assert all(open_list.parse_answer(pair.chosen, row["set_name"]) for pair in found)
  assert pairs([1.0] * 4) == []


def test_a_written_pair_is_read_back(tmp_path):
  pairs = preferences.sampled_preferences({"prompt": "p", "n": 1, "split": "train"}, [[1, 0], [2, 0]], [0, 1], most=1)
  path = _write(tmp_path / "pairs.jsonl", *map(scored.to_json, pairs))
  assert preferences.jsonl_preferences(path, rejected=True) == pairs


def _encode(pairs, responses=2, longest=9, **options):
  return pair_tokens.encode_pairs(
    LetterTokenizer(), pairs, responses=responses, max_prompt_length=20, max_response_length=longest, **options
  )


def _pair(prompt, chosen, rejected):
  return preferences.Preference({"prompt": prompt}, chosen, rejected)


def test_responses_follow_their_prompt_and_end():
  encoded = _encode([_pair("q", "yes", "!no"), _pair("q", (7, 8), "far too long")])
  letters = lambda ids: "".join(map(chr, ids))
  assert letters(encoded.prompts[0]) == "[q]:"
  assert [letters(ids) for ids in encoded.responses[0]] == ["yes]", "!no]"]
  assert encoded.seams == 1 and encoded.dropped == 1 and len(encoded.rows) == 1


@pytest.mark.parametrize("which", ["letters", "demo"])
def test_many_responses_to_a_prompt_are_encoded_as_one_by_one(which):
  tokenizer = LetterTokenizer() if which == "letters" else demo_tokenizer.load()
  encoder = pair_tokens.Encoder(tokenizer)
  texts = [
    "Paris",
    " Paris",
    "a",
    "!",
    "!a",
    "New York.",
    "**Elk**",
    "3*4",
    "",
    "Zürich",
    "two\nlines",
    "end]",
    "x<|im_end|>",
  ]
  for prompt in ("Name a city.", "Name a city. "):
    one_by_one = [list(encoder.response(prompt, text))[:-1] for text in texts]
    assert pair_tokens.Encoder(tokenizer).bodies(prompt, texts) == one_by_one


def test_long_responses_are_cut_where_asked_and_keep_their_end():
  pairs = [
    _pair("q", "short", "far too long"),
    _pair("q", "far too late", "far too long"),
    _pair("a" * 20, "yes", "no"),
  ]
  encoded = _encode(pairs, too_long="truncate", keep_ending=True)
  letters = ["".join(map(chr, ids)) for ids in encoded.responses[0]]
  assert letters == ["short]", "far too ]"] and (encoded.dropped, len(encoded.rows)) == (2, 1)
  encoded = _encode(pairs, too_long="truncate")  # as a policy writes them: cut, without an end
  assert ["".join(map(chr, ids)) for ids in encoded.responses[0]] == ["short]", "far too l"]
  with pytest.raises(InputError, match="a response has 13 tokens.* data.too_long to drop or truncate .prompt 'q'"):
    _encode(pairs, too_long="error")


def test_ids_are_taken_as_they_are():
  assert _encode([_pair("q", (7, 8), (9,))]).responses == [((7, 8), (9,))]


def test_kto_gets_a_response_to_another_prompt():
  pairs = [_pair(prompt, (index,), (50,)) for index, prompt in enumerate("aabac")]
  assert [group[2] for group in _encode(pairs, responses=3).responses] == [(2,), (2,), (3,), (4,), (0,)]
  with pytest.raises(InputError, match="at least two prompts"):
    _encode(pairs[:2], responses=3)


def test_responses_end_once():
  pairs = [_pair("q", "yes]]", "no]"), _pair("q", "y]es", "no"), _pair("q", (7, 93, 8), (93,))]
  encoded = _encode(pairs)
  end = ord("]")
  assert [[ids.count(end) for ids in group] for group in encoded.responses] == [[1, 1], [1, 1]]
  assert encoded.responses[0][0] == (*map(ord, "yes]"),) and encoded.responses[1] == ((7, 93, 8), (93,))
  assert (encoded.ended, encoded.dropped, len(encoded.rows)) == (1, 0, 2)


def test_nothing_left_is_said():
  with pytest.raises(InputError, match="every pair is too long.*max_response_length=1"):
    _encode([_pair("q", "yes", "no")], longest=1)


def test_a_fingerprint_tells_pairs_apart():
  first = _encode([_pair("q", (7, 8), (9,))])
  assert first.fingerprint() == _encode([_pair("q", (7, 8), (9,))]).fingerprint()
  assert first.fingerprint() != _encode([_pair("q", (7,), (8, 9))]).fingerprint()


def test_packed_pairs_hold_each_prompt_once():
  encoded = _encode([_pair("q", "yes", "no"), _pair("other", "a", "bcd")])
  packed, mask = pair_tokens.pack_pairs(encoded, [1, 0], bucket=4, max_length=9)
  assert mask.shape == (2, 2, 9) and mask.sum(axis=-1).tolist() == [[2, 4], [4, 3]]
  assert [(row == 0).sum() for row in packed.segments] == [8, 4]  # "[other]:" and "[q]:"


@pytest.mark.skipif("QEMPO_DATA_DIR" not in os.environ, reason="QEMPO_DATA_DIR names no folder of real data")
def test_real_preference_files_are_read():
  folder = pathlib.Path(os.environ["QEMPO_DATA_DIR"]) / "preference"
  for name, count in (("pandalm_human", 760), ("dpo_en_demo", 295), ("ultrafeedback_sample_test", 175)):
    found = preferences.jsonl_preferences(folder / f"{name}.jsonl.gz", rejected=True)
    assert len(found) == count and all(pair.chosen != pair.rejected for pair in found)
    assert len({hash(pair.row["prompt"]) for pair in found}) > 100
