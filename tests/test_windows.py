"""Windows: every token is scored once with the context that is promised; last words are found in the tokens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral.tokens import Tokenizer, read_tokenizer
from mistral.windows import TokenKinds, joined, last_word, sliding, token_kinds


@pytest.fixture(scope="module")
def tokenizer(small_tokenizer) -> Tokenizer:
    return read_tokenizer(small_tokenizer)


@pytest.fixture(scope="module")
def kinds(tokenizer) -> TokenKinds:
    return token_kinds(tokenizer)


def ids(tokenizer: Tokenizer, text: str) -> np.ndarray:
    return tokenizer.encode([text]).document(0).astype(np.int64)


@given(length=st.integers(0, 200), seq_len=st.integers(2, 40), stride=st.integers(1, 40))
def test_every_token_but_the_first_is_scored_once_in_order_in_the_first_window_that_holds_it(length, seq_len, stride):
    windows = sliding(np.arange(length), seq_len, min(stride, seq_len))
    assert [int(t) for window in windows for t in window.tokens[window.first :]] == list(range(1, length))
    for window in windows:
        assert window.first >= 1
        assert len(window.tokens) == seq_len or window.tokens[-1] == length - 1
        assert (np.diff(window.tokens) == 1).all()
    advance = min(stride, seq_len - 1)
    assert [int(window.tokens[0]) for window in windows] == [n * advance for n in range(len(windows))]


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (["One line", "and another."], "One line\nand another."),
        (["With its own end.\n", " and\n\n", "three\n"], "With its own end.\n and\n\nthree\n"),
        (["", "after nothing", ""], "after nothing\n"),
        (["alone"], "alone"),
        ([], ""),
    ],
)
def test_a_continuous_text_has_its_documents_on_lines_of_their_own(tokenizer, kinds, lines, text):
    tokens = joined(iter(ids(tokenizer, line) for line in lines), kinds, ids(tokenizer, "\n"))
    assert tokenizer.decode(tokens) == text


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("She gave the letter to Antony", " Antony"),
        ("the naïve Hermione", " Hermione"),
        ("with white space at the end \n\n", " end"),
        ("two  spaces   before", " before"),
        ("a line break is\nno space", " space"),
        ("with a full stop.", " stop."),
        ("ends with “quotes”", " “quotes”"),
    ],
)
def test_the_last_word_begins_at_the_last_space(tokenizer, kinds, text, word):
    window = last_word(ids(tokenizer, text), kinds, 100)
    assert tokenizer.decode(window.tokens[window.first :]) == word
    assert tokenizer.decode(window.tokens) == text.rstrip()


@pytest.mark.parametrize("text", ["alone", " alone", "\nalone", "alone ", " ", ""])
def test_a_document_of_one_word_has_nothing_to_guess_it_from(tokenizer, kinds, text):
    assert last_word(ids(tokenizer, text), kinds, 100) is None


def test_a_long_document_is_cut_on_the_left(tokenizer, kinds):
    tokens = ids(tokenizer, "To be, or not to be, that is the question of Wittenberg")
    whole = last_word(tokens, kinds, 100)
    word = len(whole.tokens) - whole.first
    for seq_len in range(word + 1, len(tokens)):
        window = last_word(tokens, kinds, seq_len)
        assert (window.tokens == tokens[-seq_len:]).all()
        assert window.first == seq_len - word
    assert last_word(tokens, kinds, word).first == 1, "a word longer than the context: what is left of it"
