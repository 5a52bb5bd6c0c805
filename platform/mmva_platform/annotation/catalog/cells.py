"""Converts cells of table files to text. Ids and texts must be text or integers; other types have no clear text."""

from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Columns of values, not text: rows.py reads them from numbers, booleans or text.
_VALUES: Final = frozenset({"bytes", "size", "islatest", "isdeletemarker"})
_EXACT: Final = {16: 2.0**11, 32: 2.0**24, 64: 2.0**53}  # by bits: up to this, floats hold every whole number
_JSON_TYPES: Final[dict[type, str]] = {
    bool: "a boolean", float: "a number with decimals", list: "a list", dict: "an object",
}  # fmt: skip
_NO_TEXT: Final = "must be text or integers"


def refused_type(name: str, kind: pa.DataType) -> str | None:
    """Why a column cannot be read, by its Arrow type; None if the type is accepted."""
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    number = types.is_integer(kind) or types.is_floating(kind) or (types.is_decimal(kind) and kind.scale == 0)
    if types.is_null(kind) or number or _is_text(kind) or _is_bytes(kind):
        return None
    if name in _VALUES and (types.is_boolean(kind) or types.is_decimal(kind)):
        return None
    return f"is of type {kind}; it {_NO_TEXT}"


def column_as_text(name: str, values: pa.Array) -> tuple[pa.Array, list[int], str]:
    """Return a column as large_string (_VALUES unchanged), its bad rows, which become null, and the reason.

    Accepts whole numbers and NaN in floats: pandas writes integer columns with missing values like this. Raises
    ValueError ("is of type ...") if the values have no text form.
    """
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if _is_text(values.type) or _is_bytes(values.type):
        return _decoded(values)
    if name in _VALUES:
        return values, [], ""
    if pa.types.is_floating(values.type):
        values = _whole(values)
    return values.cast(pa.large_string()), [], ""


def json_as_text(name: str, value: object) -> str | None:
    """A JSON value as text. null and NaN become None, lone surrogates (legal in JSON) become question marks.

    Raises TypeError, naming the column, if the value has no text form.
    """
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if value is None or value != value:  # noqa: PLR0124 - NaN
        return None
    if name in _VALUES:
        return str(value)
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT[64]:
        return str(int(value))
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"column {name!r} has {_JSON_TYPES[type(value)]}; it {_NO_TEXT}")
    return str(value)


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    views = types.is_binary_view(kind) or types.is_fixed_size_binary(kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or views)


def _decoded(values: pa.Array) -> tuple[pa.Array, list[int], str]:
    """Decode text or bytes as UTF-8: Impala and old Spark do not mark text, and a file may be damaged."""
    raw = values.cast(pa.large_binary())
    try:
        return raw.cast(pa.large_string()), [], ""
    except pa.ArrowInvalid:
        texts, bad = [], []
        for row, value in enumerate(raw.to_pylist()):
            try:
                texts.append(None if value is None else value.decode())
            except UnicodeDecodeError:
                texts.append(None)
                bad.append(row)
        return pa.array(texts, pa.large_string()), bad, "bytes that are not UTF-8"


def _whole(values: pa.Array) -> pa.Array:
    values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
    found_N = values.drop_null().to_numpy().astype(np.float64)
    exact = _EXACT[values.type.bit_width]
    if not ((np.abs(found_N) <= exact) & (found_N == np.floor(found_N))).all():
        raise ValueError(f"is of type {values.type} and has numbers with decimals; it {_NO_TEXT}")
    return values.cast(pa.float64()).cast(pa.int64())
