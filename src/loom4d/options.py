"""What may be chosen in a frozen dataclass of options: names, types, ranges, defaults and a line on each.

Forms are made of it; the command line is made of the same dataclasses, so both always offer the same. A range stands in
the annotation, `size: Annotated[int, Between(2, 4096)] = 512`, the line behind it as a comment. Nothing heavy is
imported here: a server reads forms without the networks.
"""

from __future__ import annotations

import ast
import inspect
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

KINDS = {bool: "switch", int: "whole", float: "number", str: "text"}
TYPES: dict[str, tuple[type, ...]] = {"switch": (bool,), "whole": (int,), "number": (int, float), "text": (str,)}
LONGEST = 200  # letters of a text
LARGEST = 1e9  # of a number without a range


@dataclass(frozen=True)
class Between:
    """The range that a number, or each number of several, has to lie in."""

    low: float | int
    high: float | int


@dataclass(frozen=True)
class Choice:
    """One thing that may be chosen."""

    name: str  # within the options; a part's own stand behind a dot
    kind: str  # "switch", "whole", "number", "text", "one of" its `values`, or "numbers"
    default: Any
    optional: bool = False  # None is a value too
    values: tuple[Any, ...] = ()
    count: int = 1  # of "numbers"
    low: float | int = -LARGEST
    high: float | int = LARGEST
    about: str = ""


def choice_of(record: dict[str, Any]) -> Choice:
    """The inverse of `asdict` for a choice, even where JSON has made lists of its tuples."""
    return Choice(**record | {"values": tuple(record["values"])})


def choices_of(options: Any, within: str = "") -> Iterator[Choice]:
    """All that may be chosen of an options record, whose values are the defaults, those of its parts included."""
    hints = get_type_hints(type(options), include_extras=True)
    lines = comments(type(options))
    for field in fields(options):
        value = getattr(options, field.name)
        if is_dataclass(value):
            yield from choices_of(value, f"{within}{field.name}.")
        else:
            yield _choice(within + field.name, hints[field.name], value, lines.get(field.name, ""))


def _choice(name: str, hint: Any, default: Any, about: str) -> Choice:
    facts: dict[str, Any] = {"default": default, "about": about}
    if get_origin(hint) is Annotated:
        hint, *marks = get_args(hint)
        for between in (mark for mark in marks if isinstance(mark, Between)):
            facts |= {"low": between.low, "high": between.high}
    if get_origin(hint) in (Union, UnionType) and NoneType in get_args(hint):
        facts["optional"] = True
        (hint,) = (one for one in get_args(hint) if one is not NoneType)
    if get_origin(hint) is Literal:
        return Choice(name, "one of", values=get_args(hint), **facts)
    if get_origin(hint) is tuple and set(get_args(hint)) == {float}:
        return Choice(name, "numbers", count=len(get_args(hint)), **facts)
    if hint not in KINDS:
        raise TypeError(f"{name}: no form is known for an option of type {hint}")
    return Choice(name, KINDS[hint], **facts)


def comments(record: type) -> dict[str, str]:
    """The comment that stands behind each field of a class; none where its source is not at hand."""
    try:
        source = inspect.cleandoc("\n" + inspect.getsource(record))
    except OSError:
        return {}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    behind = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    (body,) = ast.parse(source).body
    assert isinstance(body, ast.ClassDef)
    named = [one for one in body.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)]
    return {ast.unparse(one.target): behind.get(one.end_lineno or 0, "") for one in named}


def with_chosen(options: Any, values: dict[str, Any]) -> Any:
    """The record with other values at the names of `choices_of`; lists, as JSON has them, become tuples."""
    for name, value in values.items():
        first, _, rest = name.partition(".")
        inner = with_chosen(getattr(options, first), {rest: value}) if rest else value
        options = replace(options, **{first: tuple(inner) if isinstance(inner, list) else inner})
    return options


def wrong(options: Any) -> str:
    """Why the first value that cannot be had cannot, in words; empty where all can."""
    return next(filter(None, (unfit(choice, choice.default) for choice in choices_of(options))), "")


def unfit(choice: Choice, value: Any) -> str:
    """Why this cannot be chosen, in words; empty where it can."""
    name, shown = choice.name, str(value)[:40]
    if value is None:
        return "" if choice.optional else f"{name} needs a value"
    if choice.kind == "one of":
        known = any(value == one and type(value) is type(one) for one in choice.values)
        return "" if known else f"{name} is {shown}; choose one of {', '.join(map(str, choice.values))}"
    kind, parts = choice.kind, [value]
    if kind == "numbers":
        if not (isinstance(value, list | tuple) and len(value) == choice.count):
            return f"{name} takes {choice.count} numbers"
        kind, parts = "number", list(value)
    for one in parts:
        if type(one) not in TYPES[kind]:  # a switch is no number
            return f"{name} is {shown}; it takes a {kind}" + (" number" if kind == "whole" else "")
        if kind == "text" and len(one) > LONGEST:
            return f"{name} takes at most {LONGEST} letters"
        if kind in ("whole", "number") and not choice.low <= one <= choice.high:  # not a number is out of every range
            return f"{name} is {shown}; it takes {choice.low:g} to {choice.high:g}"
    return ""
