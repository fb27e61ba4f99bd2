"""what pydantic found wrong with a config -> one message: each problem with found, expected, what to do."""

import copy
import difflib
import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

Location = tuple[int | str, ...]
SOURCES = ("files", "package", "hub")  # pydantic adds the kind of a source to the locations inside it

EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text (quote it in YAML)",
    "dict_type": "a mapping (key: value)",
    "model_type": "a mapping (key: value)",
    "tuple_type": "a list",
    "model_attributes_type": "a mapping (key: value)",
}


def explain(raw: dict[str, Any], model: type[BaseModel], origin: str) -> str:
    """All problems of a config in one text.

    A section's own checks run only once its fields are valid. So that they are told together with the rest, what is
    wrong is taken out and the remainder validated again.

    Args:
        raw: what the file says.
        model: the model that it does not fit.
        origin: the file's name.
    """
    raw, problems, removed = copy.deepcopy(raw), list[str](), set[Location]()
    while errors := _errors(raw, model):
        news = [item for item in errors if item["type"] != "missing" or item["loc"] not in removed]
        problems.extend(text for item in news if (text := _problem(item, model)) not in problems)
        taken = [item["loc"] for item in errors if _take_out(raw, item)]
        removed.update(taken)
        if not taken:
            break
    count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n".join([f"{origin} has {count}:", *(f"  {problem}" for problem in problems)])


def _errors(raw: dict[str, Any], model: type[BaseModel]) -> list[Any]:
    try:
        model.model_validate(raw)
    except ValidationError as error:
        return list(error.errors())
    return []


def _take_out(raw: dict[str, Any], item: Any) -> bool:
    """Remove a value that is wrong by itself; a check over several values has nothing to remove."""
    if item["type"] in ("missing", "value_error"):
        return False
    place: Any = raw
    *parents, last = [part for part in item["loc"] if part not in SOURCES or part in item["loc"][-1:]]
    for part in parents:
        place = place.get(part) if isinstance(place, dict) else None
    if not isinstance(place, dict) or last not in place:
        return False
    del place[last]
    return True


def _problem(item: Any, model: type[BaseModel]) -> str:
    location = [part for part in item["loc"] if part not in SOURCES or part in item["loc"][-1:]]
    where = ".".join(str(part) for part in location)
    kind, found = item["type"], item.get("input")
    if kind == "extra_forbidden":
        return _unknown_key(where, str(item["loc"][-1]), valid_keys(model, item["loc"][:-1]))
    if kind == "missing":
        return f"{where}: found nothing, expected a value; add the key"
    if kind == "value_error":
        text = str(item["ctx"]["error"]).removeprefix("Value error, ")
        return text if text.startswith("training.") or not where else f"{where}: {text}"
    expected = EXPECTED.get(kind) or _sentence(item["msg"])
    return f"{where}: found {_shown(found)}, expected {expected}; change the value"


def _sentence(message: str) -> str:
    for start in ("Input should be ", "Value should have ", "String should ", "Input should have "):
        if message.startswith(start):
            return message.removeprefix(start)
    return message


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _unknown_key(where: str, key: str, valid: list[str]) -> str:
    close = difflib.get_close_matches(key, valid, n=1)
    advice = f"did you mean {close[0]}?" if close else "remove it"
    return f"{where}: found an unknown key, expected one of {', '.join(valid)}; {advice}"


def valid_keys(model: type[BaseModel], location: Location) -> list[str]:
    """The keys that the section at a location may have."""
    found: list[Any] = [model]
    for part in location:
        chosen = [one for one in found if _is_model(one) and part in SOURCES and part in one.model_fields]
        found = chosen or [inner for one in found for inner in _inside(one, part)]
    names = {name for one in found if _is_model(one) for name in one.model_fields}
    return sorted(names)


def _inside(annotation: Any, part: int | str) -> list[Any]:
    if _is_model(annotation):
        field = annotation.model_fields.get(str(part))
        return [annotation] if field is None else list(_models(field.annotation))
    return list(_models(annotation))


def _models(annotation: Any) -> Iterator[Any]:
    """The section models inside an annotation such as `dict[str, A]` or `A | B`."""
    if _is_model(annotation):
        yield annotation
        return
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        yield from _models(typing.get_args(annotation)[0])
    elif origin in (dict, tuple, list, typing.Union, types.UnionType):
        for inner in typing.get_args(annotation):
            yield from _models(inner)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
