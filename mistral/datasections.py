"""the data section of an experiment: where the text comes from, and how it becomes tokens."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from mistral.files import digest_of
from mistral.section import Check, Count, Name, Positive, Probability, Section, Whole


class FilesSource(Section):
    """Text files on this file system; globs, relative to the experiment's file."""

    files: tuple[str, ...] = Field(min_length=1)
    """Names or globs of .jsonl, .parquet, .txt and .md files, also .gz and .zst of them."""
    validation_files: tuple[str, ...] = ()
    """Names or globs of the validation documents, which are used as they are instead of a split by hash."""
    document: Literal["file", "line"] = "file"
    """What one document is in .txt and .md files."""


class PackageSource(Section):
    """Text files that come inside an installed Python package; the package itself is never imported."""

    package: str
    """Name of the package, as it is imported."""
    glob: str
    """Which of its files, as a glob from the package's folder."""
    document: Literal["file", "line"] = "file"
    """What one document is in .txt and .md files."""


class HubSource(Section):
    """A dataset of the Hugging Face Hub, or a folder written by `Dataset.save_to_disk`."""

    hub: str
    """`owner/name` of a dataset of the Hub, or a folder."""
    revision: str = "main"
    """Branch, tag or commit."""
    config: str | None = None
    """The Hub's name of a subset."""
    split: str = "train"
    """Which split is trained on."""
    validation_split: str | None = None
    """Which split is the validation split, used as it is instead of a split by hash."""


def _kind_of_source(value: Any) -> str | None:
    if isinstance(value, list | tuple):
        return "several"
    keys = value.keys() if isinstance(value, dict) else vars(value) if isinstance(value, Section) else ()
    return next((kind for kind in ("files", "package", "hub") if kind in keys), None)


KIND_OF_SOURCE = Discriminator(
    _kind_of_source,
    custom_error_type="source",
    custom_error_message="a mapping with one of the keys files, package, hub",
)
OneSource = (
    Annotated[FilesSource, Tag("files")] | Annotated[PackageSource, Tag("package")] | Annotated[HubSource, Tag("hub")]
)
Source = Annotated[OneSource, KIND_OF_SOURCE]
SeveralSources = Annotated[tuple[Source, ...], Field(min_length=1), Tag("several")]
Sources = Annotated[OneSource | SeveralSources, KIND_OF_SOURCE]  # several are concatenated


def brings_validation(source: Sources) -> bool:
    """Whether a source, or one of several, names its own validation documents."""
    if isinstance(source, tuple):
        return any(map(brings_validation, source))
    if isinstance(source, FilesSource):
        return bool(source.validation_files)
    return isinstance(source, HubSource) and source.validation_split is not None


class TrainTokenizer(Section):
    """How GPT-2's kind of tokenizer is trained on the training documents."""

    vocab_size: Annotated[Whole, Field(ge=257)]
    """Size of the vocabulary: the 256 bytes, end-of-text, and what is merged from them. [tokens]"""
    megabytes: Positive = 1000
    """Text that it is trained on: the same share of the beginning of every unit. [MB]"""


class TrainedTokenizer(Section):
    """A tokenizer that is trained from scratch."""

    train: TrainTokenizer
    """How it is trained."""


class PassthroughIds(Section):
    """The vocabulary of a corpus that is token ids already."""

    vocab_size: Positive
    """Size of the vocabulary: ids are below it. [tokens]"""
    end_of_text_id: Count
    """The id that is put after each document. [token id]"""

    def checks(self) -> tuple[Check, ...]:
        """End-of-text is in the vocabulary."""
        return (self._end_of_text_outside,)

    def _end_of_text_outside(self) -> str | None:
        if self.end_of_text_id < self.vocab_size:
            return None
        return (
            f"found end_of_text_id {self.end_of_text_id}, expected below vocab_size {self.vocab_size}; raise vocab_size"
        )


class PassthroughTokenizer(Section):
    """No tokenizer: data.text_field holds lists of token ids."""

    passthrough: PassthroughIds
    """The vocabulary of the ids."""


def _kind_of_tokenizer(value: Any) -> str | None:
    keys = value.keys() if isinstance(value, dict) else vars(value) if isinstance(value, Section) else ("name",)
    return next((kind for kind in ("name", "train", "passthrough") if kind in keys), None)


KIND_OF_TOKENIZER = Discriminator(
    _kind_of_tokenizer,
    custom_error_type="tokenizer",
    custom_error_message="gpt2, a folder, or a mapping with the key train or passthrough",
)
TokenizerChoice = (
    Annotated[str, Tag("name")]
    | Annotated[TrainedTokenizer, Tag("train")]
    | Annotated[PassthroughTokenizer, Tag("passthrough")]
)


class Data(Section):
    """Which text, and how it becomes tokens. Shards depend on this section and on the text alone."""

    name: Name
    """What the dataset is called in the workspace."""
    source: Sources
    """Where the text comes from: one source, or a list of several, which are concatenated."""
    text_field: str = "text"
    """Which field of JSON objects, tables and datasets holds the text."""
    tokenizer: Annotated[TokenizerChoice, KIND_OF_TOKENIZER] = "gpt2"
    """`gpt2`; a folder that holds tokenizer.json, relative to the experiment's file; or a section `train` or
    `passthrough`."""
    tokenizer_engine: Literal["fast", "reference"] = "fast"
    """Which code tokenizes: both give the same shards, `reference` a hundred times slower."""
    validation_fraction: Probability = 0.0005
    """Share of the documents that become the validation split, by their hash; 0 for none. [fraction]"""
    detokenizer: Literal["none", "wikitext"] = "none"
    """`wikitext` takes out the spaces that WikiText's tokenization put in."""
    deduplicate: Literal["none", "exact"] = "none"
    """`exact`: of documents that are the same only the first stays."""
    on_bad_document: Literal["stop", "skip"] = "stop"
    """What happens at a document that cannot be read: `skip` counts it and goes on."""
    unit_megabytes: Positive = 256
    """Source text of one unit of work. [MB]"""

    def checks(self) -> tuple[Check, ...]:
        """The validation split has one origin; ids are not text."""
        return (self._validation_overlap, self._detokenized_ids)

    def _detokenized_ids(self) -> str | None:
        if self.passthrough() is None or self.detokenizer == "none":
            return None
        return f"found detokenizer {self.detokenizer} for token ids, expected none; leave it out"

    def passthrough(self) -> PassthroughIds | None:
        """The vocabulary of a corpus that is token ids already."""
        return self.tokenizer.passthrough if isinstance(self.tokenizer, PassthroughTokenizer) else None

    def vocabulary(self) -> int | None:
        """Tokens in the vocabulary, where this section says it."""
        if isinstance(self.tokenizer, TrainedTokenizer):
            return self.tokenizer.train.vocab_size
        ids = self.passthrough()
        return ids.vocab_size if ids else None

    def _validation_overlap(self) -> str | None:
        if not (self.brings_validation() and self.validation_fraction):
            return None
        return (
            f"found validation_fraction {self.validation_fraction} beside a source that brings its own validation "
            "documents, expected validation_fraction: 0; set it to 0, or leave out the source's validation part"
        )

    def sources(self) -> tuple[Source, ...]:
        """The sources, in order."""
        return self.source if isinstance(self.source, tuple) else (self.source,)

    def brings_validation(self) -> bool:
        """Whether a source names its own validation documents."""
        return brings_validation(self.source)

    def has_validation(self) -> bool:
        """Whether there is a validation split at all."""
        return self.brings_validation() or self.validation_fraction > 0

    def identity(self) -> dict[str, Any]:
        """What decides the bytes of the shards: all but the tokenizer's engine."""
        return self.model_dump(mode="json", exclude={"tokenizer_engine"})

    def dataset_name(self) -> str:
        """`<name>-<digest>`: two data sections that differ in anything never share shards."""
        return f"{self.name}-{digest_of(self.identity())[:8]}"
