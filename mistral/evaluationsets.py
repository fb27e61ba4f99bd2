"""the evaluation section of an experiment: when the model is measured, and on which texts besides its own split.

An evaluation set is an ordinary dataset of the project: `data` makes the section that it is prepared from.
"""

from typing import Any, Literal

from pydantic import model_validator

from mistral.datasections import Data, HubSource, Sources, TrainedTokenizer, brings_validation
from mistral.section import Check, Positive, Section

STRIDE_TOKENS = 512
WIKITEXT103 = HubSource(
    hub="Salesforce/wikitext",
    config="wikitext-103-raw-v1",
    revision="b08601e04326c79dfdd32d625aee71d232d685c3",
    split="test",
)
LAMBADA = HubSource(
    hub="EleutherAI/lambada_openai",
    config="default",
    revision="900124bf3b8235c6daf21033af9948b3f07346c4",
    split="test",
)


class EvaluationSet(Section):
    """A text that is measured on and never trained on."""

    source: Sources
    """Where the text comes from, as in `data`."""
    text_field: str = "text"
    """Which field of JSON objects, tables and datasets holds the text."""
    detokenizer: Literal["none", "wikitext"] = "none"
    """`wikitext` takes out the spaces that WikiText's tokenization put in."""

    def checks(self) -> tuple[Check, ...]:
        """There is one split."""
        return (self._second_split,)

    def _second_split(self) -> str | None:
        if not brings_validation(self.source):
            return None
        return (
            "found a source with validation documents of its own, expected one split, as all of an evaluation set is "
            "measured on; leave out the source's validation part"
        )


class WikiText103(EvaluationSet):
    """One continuous text: `wikitext103: {}` is the test split of WikiText-103 (Merity et al. 2016)."""

    source: Sources = WIKITEXT103
    """The test split of WikiText-103 on the Hub unless given."""
    detokenizer: Literal["none", "wikitext"] = "none"
    """`wikitext` takes out the spaces that WikiText's tokenization put in; the default where no source is given."""

    @model_validator(mode="before")
    @classmethod
    def _detokenize_its_own_text(cls, value: Any) -> Any:
        """A text of one's own stays as it is; the one on the Hub is in WikiText's tokenization."""
        if isinstance(value, dict) and not {"source", "detokenizer"} & value.keys():
            return {**value, "detokenizer": "wikitext"}
        return value


class Lambada(EvaluationSet):
    """Documents whose last word is to be guessed: `lambada: {}` is LAMBADA's test split as OpenAI published it."""

    source: Sources = LAMBADA
    """LAMBADA's test split on the Hub unless given."""


class Evaluation(Section):
    """When, and on what, the loss is measured outside the training split."""

    every_steps: Positive = 1000
    """Steps from one evaluation to the next; the last step is always evaluated. [optimizer steps]"""
    max_sequences: Positive | None = None
    """How much of the validation split is measured on; all of it unless given. [sequences]"""
    wikitext103: WikiText103 | None = None
    """Measure on one continuous text; `{}` is the test split of WikiText-103."""
    lambada: Lambada | None = None
    """Measure how often the last word of a document is guessed; `{}` is LAMBADA's test split."""
    stride: Positive | None = None
    """Distance of two windows on wikitext103; 512, or seq_len if that is less, unless given. [tokens]"""

    def data(self, main: Data) -> dict[str, Data]:
        """The data section of each evaluation set: one split, and the tokenizer of the main dataset."""
        trained = isinstance(main.tokenizer, TrainedTokenizer)  # on the main dataset, which the name then tells
        return {
            name: Data(
                name=f"{name}-for-{main.dataset_name()}" if trained else name,
                source=part.source,
                text_field=part.text_field,
                detokenizer=part.detokenizer,
                tokenizer=main.tokenizer,
                tokenizer_engine=main.tokenizer_engine,
                validation_fraction=0.0,
            )
            for name, part in self.chosen().items()
        }

    def chosen(self) -> dict[str, EvaluationSet]:
        """The evaluation sets by name."""
        sets = {"wikitext103": self.wikitext103, "lambada": self.lambada}
        return {name: part for name, part in sets.items() if part is not None}
