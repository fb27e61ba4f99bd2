"""the data section of an experiment: where the text comes from, and how it becomes tokens."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from mistral.files import digest_of
from mistral.section import Check, Count, Name, Positive, Probability, Section, Whole


class FilesSource(Section):
    """Text files on this file system; globs, relative to the experiment's file."""

    files: tuple[str, ...] = Field(min_length=1)
    validation_files: tuple[str, ...] = ()  # used as they are, instead of a split by hash
    document: Literal["file", "line"] = "file"  # what one document is in .txt and .md


class PackageSource(Section):
    """Text files that come inside an installed Python package; the package itself is never imported."""

    package: str
    glob: str
    document: Literal["file", "line"] = "file"


class HubSource(Section):
    """A dataset of the Hugging Face Hub, or a folder written by `Dataset.save_to_disk`."""

    hub: str
    revision: str = "main"
    config: str | None = None  # the Hub's name of a subset
    split: str = "train"
    validation_split: str | None = None  # used as it is, instead of a split by hash


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

    vocab_size: Annotated[Whole, Field(ge=257)]  # the 256 bytes, end-of-text, and what is merged from them
    megabytes: Positive = 1000  # of text it is trained on: the same share of the beginning of every unit


class TrainedTokenizer(Section):
    """A tokenizer that is trained from scratch."""

    train: TrainTokenizer


class PassthroughIds(Section):
    """The vocabulary of a corpus that is token ids already."""

    vocab_size: Positive
    end_of_text_id: Count  # put after each document

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
    source: Sources
    text_field: str = "text"  # of jsonl, parquet and datasets
    # gpt2; a folder that holds tokenizer.json, relative to the experiment's file; {train: {vocab_size: 8192}}; or
    # {passthrough: {vocab_size: 50257, end_of_text_id: 50256}} where text_field holds token ids
    tokenizer: Annotated[TokenizerChoice, KIND_OF_TOKENIZER] = "gpt2"
    tokenizer_engine: Literal["fast", "reference"] = "fast"  # the same shards, a hundred times faster or slower
    validation_fraction: Probability = 0.0005
    detokenizer: Literal["none", "wikitext"] = "none"
    deduplicate: Literal["none", "exact"] = "none"  # exact: of the same document only the first stays
    on_bad_document: Literal["stop", "skip"] = "stop"
    unit_megabytes: Positive = 256  # of source text per unit of work

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
