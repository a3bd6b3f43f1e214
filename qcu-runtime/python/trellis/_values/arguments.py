"""Checks of the arguments that several calls take: names, fields and symbols."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from ..errors import BadRequest


def text(value: Any, name: str) -> str:
    """`value`, which must be text. Errors call it `name`.

    Raises:
        BadRequest: it is not text.
    """
    if not isinstance(value, str):
        raise BadRequest(f"{name} must be text, not {type(value).__name__} {value!r}")
    return value


def whole(value: Any, name: str) -> int | None:
    """`value`, which must be a whole number, not below 0, or None. Errors call it `name`.

    Raises:
        BadRequest: it is something else.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not hasattr(value, "__index__") or not 0 <= operator.index(value) < 2**32:
        raise BadRequest(f"{name} must be a whole number, not {value!r}")
    return operator.index(value)


def field_list(fields: Any) -> tuple[Any, ...]:
    """The argument `fields` as a tuple: one name, or a list, array or Index of names. None and () mean all fields."""
    if fields is None:
        return ()
    if isinstance(fields, str):
        return (fields,)
    if not _is_list(fields):
        raise BadRequest(f"fields must be the name of a field or a list of names, not {fields!r}")
    return tuple(str(f) if isinstance(f, str) else f for f in fields)


def _is_list(names: Any) -> bool:
    # iterating a DataFrame gives the names of its columns; an array without dimensions cannot be iterated
    return hasattr(names, "__iter__") and not isinstance(names, Mapping) and getattr(names, "ndim", 1) == 1


def symbol_list(symbols: Any) -> tuple[str, ...]:
    """The argument `symbols` as a tuple: a symbol or a list. None and "*" mean all; an empty list is refused."""
    if symbols is None or (isinstance(symbols, str) and symbols == "*"):
        return ("*",)
    if isinstance(symbols, str):
        return (symbols,)
    if not _is_list(symbols):
        raise BadRequest(f'symbols must be a symbol, a list of them, or "*", not {symbols!r}')
    listed = tuple(str(s) if isinstance(s, str) else s for s in symbols)
    wrong = [s for s in listed if not isinstance(s, str)]
    if wrong:
        raise BadRequest(f"symbols must be strings, not {wrong[0]!r}")
    if not listed:
        raise BadRequest("the list of symbols is empty", hint='symbols="*" reads every symbol')
    return listed
