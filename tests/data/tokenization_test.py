"""Tokenizers from GGUF files and folders, against a golden made by a plain-Python encoder."""

import json
import pathlib

import gguf
import pytest

from qempo_jax.data import tokenization
from qempo_jax.errors import InputError
from tests.data import demo_tokenizer

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "tokenizer.json").read_text())


@pytest.fixture(scope="module")
def tokenizer():
  return demo_tokenizer.load()


@pytest.fixture
def tiny_gguf(tmp_path):
  """Returns a function that writes a GGUF file holding a tokenizer of nine tokens."""

  def write(*, kind="gpt2", pre="smollm", add_bos=False, name="tiny.gguf"):
    path = tmp_path / name
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    if kind is not None:
      writer.add_tokenizer_model(kind)
      writer.add_tokenizer_pre(pre)
      writer.add_token_list(["<s>", "</s>", "a", "b", "1", "2", "Ġ", "ab", "12"])
      writer.add_token_types([3, 3, 1, 1, 1, 1, 1, 1, 1])
      writer.add_token_merges(["a b", "1 2"])
      writer.add_bos_token_id(0)
      writer.add_eos_token_id(1)
      writer.add_add_bos_token(add_bos)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path

  return write


@pytest.mark.parametrize("row", GOLDEN["texts"], ids=lambda row: ascii(row["text"])[:24])
def test_ids_match_the_golden_and_decode_back(tokenizer, row):
  assert tokenizer.encode(row["text"]) == row["ids"]
  assert tokenizer.decode(row["ids"]) == row["text"]


def test_a_batch_gives_the_same_ids_as_each_text_alone(tokenizer):
  batch = tokenizer([row["text"] for row in GOLDEN["texts"]])["input_ids"]
  assert batch == [row["ids"] for row in GOLDEN["texts"]]


@pytest.mark.parametrize("row", GOLDEN["conversations"], ids=["default system", "own system"])
def test_conversations_match_the_golden(tokenizer, row):
  assert tokenization.encode_chat(tokenizer, row["messages"]) == row["ids"]


def test_a_plain_prompt_is_one_user_message(tokenizer):
  prompt = GOLDEN["conversations"][0]["messages"][0]["content"]
  ids = tokenization.encode_chat(tokenizer, prompt)
  assert ids == GOLDEN["conversations"][0]["ids"]
  assert ids[-4:] == [1, *tokenizer.encode("assistant\n")]  # The header the model continues from.
  assert ids[0] == tokenizer.bos_token_id and ids[1] != tokenizer.bos_token_id


def test_digits_are_split_one_by_one(tokenizer):
  tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode("2024 is x365\u00bd"))
  assert tokens[:4] == ["2", "0", "2", "4"] and tokens[-4:-1] == ["3", "6", "5"]


def test_special_tokens_are_single_ids_and_known_as_special(tokenizer):
  for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<empty_output>"):
    assert tokenizer.encode(token) == [tokenizer.convert_tokens_to_ids(token)]
    assert tokenizer.decode(tokenizer.encode(f"a{token}b"), skip_special_tokens=True) == "ab"


def test_roles_come_from_the_file(tokenizer):
  assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
  assert len(tokenizer) == 49152
  assert tokenizer.model_max_length == 8192
  assert tokenizer.padding_side == "left"


def test_stop_ids_hold_eos_and_end_of_turn(tokenizer, tiny_gguf):
  assert tokenization.stop_token_ids(tokenizer) == (2,)
  base_model = tokenization.load_tokenizer(tiny_gguf())
  assert tokenization.stop_token_ids(base_model) == (1,)
  base_model.add_tokens("<|im_end|>", special_tokens=True)
  assert tokenization.stop_token_ids(base_model) == (1, 9)


def test_a_saved_folder_loads_the_same_tokenizer(tokenizer, tmp_path):
  tokenizer.save_pretrained(tmp_path)
  loaded = tokenization.load_tokenizer(tmp_path)
  text = GOLDEN["texts"][3]
  assert loaded.encode(text["text"]) == text["ids"]
  row = GOLDEN["conversations"][1]
  assert tokenization.encode_chat(loaded, row["messages"]) == row["ids"]


@pytest.mark.parametrize(("pre", "ids"), [("smollm", [7, 4, 5]), ("gpt-2", [7, 8])])
def test_the_pre_tokenizer_named_in_the_file_is_used(tiny_gguf, pre, ids):
  assert tokenization.load_tokenizer(tiny_gguf(pre=pre)).encode("ab12") == ids


@pytest.mark.parametrize("add_bos", [False, True])
def test_bos_is_added_once_when_the_file_asks_for_it(tiny_gguf, add_bos):
  tokenizer = tokenization.load_tokenizer(tiny_gguf(add_bos=add_bos))
  assert tokenizer.encode("ab") == [0] * add_bos + [7]
  assert tokenization.encode_chat(tokenizer, "ab") == [0] * add_bos + [7]  # No template: a plain prompt.
  tokenizer.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}"
  assert tokenization.encode_chat(tokenizer, "ab") == [0, 7]


def test_messages_without_a_template_are_refused(tiny_gguf):
  tokenizer = tokenization.load_tokenizer(tiny_gguf())
  with pytest.raises(InputError, match="no chat template"):
    tokenization.encode_chat(tokenizer, [{"role": "user", "content": "ab"}])


def test_a_template_that_raises_is_one_clear_line(tiny_gguf):
  tokenizer = tokenization.load_tokenizer(tiny_gguf())
  tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
  with pytest.raises(InputError, match="roles must alternate"):
    tokenization.encode_chat(tokenizer, "ab")


def test_an_empty_folder_is_named_with_the_remedy(tmp_path):
  with pytest.raises(InputError, match=f"{tmp_path}.*tokenizer.json"):
    tokenization.load_tokenizer(tmp_path)


def test_a_malformed_tokenizer_folder_is_one_clear_line(tmp_path):
  (tmp_path / "tokenizer.json").write_text("{")
  with pytest.raises(InputError, match="Can't read the tokenizer in the folder"):
    tokenization.load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["absent.gguf", "./absent", "/absent/model", "a/b/c"])
def test_absent_paths_are_named_without_a_download(name):
  with pytest.raises(InputError, match="No such model"):
    tokenization.load_tokenizer(name)


def test_an_unreachable_id_is_one_clear_line(monkeypatch):
  def refuse(name):
    raise OSError(f"{name} is unreachable\nand a long explanation")

  monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", refuse)
  with pytest.raises(InputError, match="'org/name' is neither") as caught:
    tokenization.load_tokenizer("org/name")
  assert "\n" not in str(caught.value)


def test_damaged_and_foreign_gguf_files_are_refused(tiny_gguf, tmp_path):
  whole = tiny_gguf().read_bytes()
  (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
  (tmp_path / "text.gguf").write_text("not a model")
  for name in ("cut.gguf", "text.gguf"):
    with pytest.raises(InputError, match=f"Can't read .*{name}"):
      tokenization.load_tokenizer(tmp_path / name)
  with pytest.raises(InputError, match="No BPE tokenizer"):
    tokenization.load_tokenizer(tiny_gguf(kind=None, name="weights.gguf"))
  with pytest.raises(InputError, match="kind llama/default"):
    tokenization.load_tokenizer(tiny_gguf(kind="llama", pre="default", name="spm.gguf"))
