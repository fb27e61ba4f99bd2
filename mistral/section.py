"""what every section of a config is: frozen, unknown keys forbidden, checked; and the kinds of numbers in them."""

from collections.abc import Callable
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError


def _no_truth_value(value: Any) -> Any:
    """Refuse `n_layer: true`, which pydantic would read as 1."""
    if isinstance(value, bool):
        raise PydanticCustomError("truth_value", "a number")
    return value


NAME = r"^[a-z0-9][a-z0-9_.-]*$"
Name = Annotated[str, Field(pattern=NAME, max_length=64)]
Whole = Annotated[int, BeforeValidator(_no_truth_value)]
Real = Annotated[float, BeforeValidator(_no_truth_value)]
Positive = Annotated[Whole, Field(gt=0)]
Count = Annotated[Whole, Field(ge=0)]
Seed = Annotated[Whole, Field(ge=0, lt=2**63)]
Probability = Annotated[Real, Field(ge=0.0, lt=1.0)]
Check = Callable[[], str | None]  # a check over several values: what is wrong, or None


class Section(BaseModel):
    """A part of a config: immutable, and unknown keys are errors.

    The text below a field tells what it means, and the unit of a number in brackets; docs/config.md is made from it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    def checks(self) -> tuple[Check, ...]:
        """Checks over several values; each runs as soon as the values that it reads are valid by themselves."""
        return ()

    @model_validator(mode="after")
    def _passes_its_checks(self) -> Self:
        if problems := [problem for check in self.checks() if (problem := check())]:
            raise ValueError("\n".join(problems))
        return self
