"""what is wrong with a config -> one message: each problem with found, expected, what to do."""

import contextlib
import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from mistral.section import Section

Location = tuple[int | str, ...]
MOST_TOLD = 100  # problems; a file that has more is no config
SOURCES = ("files", "package", "hub")  # the kinds of a source, which pydantic adds to the locations inside it

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
    "mapping_type": "a mapping (key: value)",
    "invalid_key": "keys that are text (quote them in YAML)",
    "string_pattern_mismatch": "small letters, digits, '.', '_' and '-', with a letter or a digit first",
    "too_short": "at least one entry",
    "too_long": "fewer entries: pairs [every, until]",
}


def explain(raw: dict[str, Any], model: type[Section], error: ValidationError, origin: str) -> str:
    """All problems of a config in one text.

    Pydantic runs a section's own checks only once all its values are valid. So that they are told together with the
    rest, each check runs here on the values that are valid.

    Args:
        raw: what the file says.
        model: the model that it does not fit.
        error: what pydantic found.
        origin: the file's name.
    """
    told = [item for item in error.errors() if item["type"] != "value_error"]
    within = {item["loc"][:end] for item in told for end in range(len(item["loc"]))}
    # Pydantic calls a list empty as well if none of its entries is right.
    told = [item for item in told if item["type"] != "too_short" or item["loc"] not in within]
    problems = [*(_problem(item, model) for item in told), *_what_is_valid(raw, model, ())[1]]
    count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
    more = [f"and {len(problems) - MOST_TOLD} more; mend these first"] if len(problems) > MOST_TOLD else []
    return "\n".join([f"{origin} has {count}:", *(f"  {problem}" for problem in [*problems[:MOST_TOLD], *more])])


def _what_is_valid(raw: dict[str, Any], model: type[Section], where: Location) -> tuple[Section, list[str]]:
    """A section that holds its valid values only, and the checks that fail on them."""
    values, problems = dict[str, Any](), list[str]()
    for name, field in model.model_fields.items():
        inner = _without_none(field.annotation)
        if name not in raw:
            values |= {} if field.is_required() else {name: field.get_default()}
        elif isinstance(inner, type) and issubclass(inner, Section) and isinstance(raw[name], dict):
            values[name], found = _what_is_valid(raw[name], inner, (*where, name))
            problems += found
        else:
            adapter: TypeAdapter[Any] = TypeAdapter(Annotated[field.annotation, field])  # type: ignore[arg-type] # made at runtime
            try:
                values[name] = adapter.validate_python(raw[name])
            except ValidationError as error:
                problems += _failed_checks(error, (*where, name))
    section = model.model_construct()
    vars(section).clear()
    vars(section).update(values)
    for check in section.checks():
        with contextlib.suppress(AttributeError):  # the check reads a value that is wrong itself
            if text := check():
                problems.append(text if ": found" in text else f"{_dotted(where)}: {text}")
    return section, problems


def _failed_checks(error: ValidationError, where: Location) -> list[str]:
    """The checks that fail inside a value of several kinds, such as one of the tokenizers."""
    failed = [item for item in error.errors() if item["type"] == "value_error"]
    return [
        f"{_dotted((*where, *item['loc']))}: {text}"
        for item in failed
        for text in str(item["ctx"]["error"]).split("\n")
    ]


def _without_none(annotation: Any) -> Any:
    """The section that `A | None` may hold, and any other annotation as it is."""
    left = [inner for inner in typing.get_args(annotation) if inner is not types.NoneType]
    return left[0] if isinstance(annotation, types.UnionType) and len(left) == 1 else annotation


def _problem(item: Any, model: type[Section]) -> str:
    where, kind = _dotted(item["loc"]), item["type"]
    if kind == "extra_forbidden":
        return _unknown_key(where, str(item["loc"][-1]), valid_keys(model, item["loc"][:-1]))
    if kind == "missing":
        return f"{where}: found nothing, expected {_meaning(model, item['loc'])}; add it"
    expected = EXPECTED.get(kind) or _sentence(item["msg"])
    return f"{where}: found {_shown(item.get('input'))}, expected {expected}; change the value"


def _dotted(location: Location) -> str:
    """`data.source.files`: a place as a user writes it, without what pydantic adds to it."""
    if "source" in location and location[0] in ("data", "evaluation"):
        start = location.index("source") + 1
        kind, within = location[start : start + 1], location[start + 1 :]  # without the kind of the source
        location = (*location[:start], *(within[:1] + within[2:] if kind == ("several",) else within))
    if location[:2] == ("data", "tokenizer"):
        location = (*location[:2], *location[3:])
    parts = [str(part) for part in location if part != "[key]"]
    return ".".join(part if part.isprintable() else repr(part) for part in parts)


def _sentence(message: str) -> str:
    for start in ("Input should be ", "Value should have ", "String should have ", "Input should have "):
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


def _meaning(model: type[BaseModel], location: Location) -> str:
    """What the key at a location means."""
    found: list[Any] = [model]
    for part in location[:-1]:
        found = [inner for one in found for inner in _inside(one, part)]
    fields = [
        one.model_fields[str(location[-1])] for one in found if _is_model(one) and location[-1] in one.model_fields
    ]
    text = (fields[0].description or "") if fields else ""
    return f"a value: {' '.join(text.split()).rstrip('.')}" if text else "a value"


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
    elif origin in (dict, Mapping, tuple, list, typing.Union, types.UnionType):
        for inner in typing.get_args(annotation):
            yield from _models(inner)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
