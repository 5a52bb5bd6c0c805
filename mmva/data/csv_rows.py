"""Read CSV rows strictly: every violation of RFC 4180 is reported with its line, and nothing is guessed."""

import csv
import io
import re
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final, NamedTuple

LONGEST_LINE: Final = 16 * 2**20  # characters or bytes of a line or field, so that an unclosed quote has an end
NOT_UTF8: Final = "bytes that are not UTF-8"  # a reason in Malformed
_BLANK_BEFORE_QUOTE: Final = re.compile(r'[ \t]+"')


class Malformed(NamedTuple):
    """A row that cannot be read."""

    line: int  # number of its first line, from 1
    reason: str  # one of a few texts, for counting
    detail: str  # the problem of this row


def csv_rows(
    file: BinaryIO, on_malformed: Callable[[Malformed], None], delimiter: str = ",", *, pad: bool = False
) -> Iterator[list[str]]:
    """Yield the header and the rows, all with as many fields as the header. Empty lines are skipped.

    Args:
        file: UTF-8, with or without a byte order mark; lines end with LF, CRLF or CR.
        on_malformed: Raises, or returns to skip the row. Reading continues at the next line, so that an unclosed
            quote does not affect later rows.
        delimiter: Separates the fields.
        pad: Fill rows that are too short with empty fields, for callers that report these.
    """
    csv.field_size_limit(LONGEST_LINE)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    held, again = list[str](), list[str]()  # lines of the current row; lines to read again, last one first
    reader = csv.reader(_lines(text, held, again), delimiter=delimiter, strict=True)
    line, number, width = 1, 0, 0
    try:
        while True:
            held.clear()
            fault = None
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                row, fault = [""], _explained(error)
            number += bool(row)
            if row and fault is None:
                width = width or len(row)
                row += [""] * (width - len(row)) if pad else []
                fault = _fault(row, held[0] if len(held) == 1 else "".join(held), number, width)
            if fault is None:
                line += len(held)
                if row:
                    yield row
            else:
                on_malformed(Malformed(line, *fault))
                line += 1
                again += held[:0:-1]
                reader = csv.reader(_lines(text, held, again), delimiter=delimiter, strict=True)
    finally:
        if not file.closed:
            text.detach()  # otherwise it closes the caller's file


def _lines(text: io.TextIOWrapper, held: list[str], again: list[str]) -> Iterator[str]:
    """Yield the lines in `again`, last one first, then those of the text; also add each to `held`."""
    while line := again.pop() if again else text.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE and not line.endswith(("\n", "\r")):
            while (rest := text.readline(LONGEST_LINE)) and not rest.endswith(("\n", "\r")):
                pass  # skip the rest of the line
            line += "\n"
        held.append(line)
        if len(line) > LONGEST_LINE:
            raise csv.Error("field larger than the longest line")
        yield line


def _explained(error: csv.Error) -> tuple[str, str]:
    if "expected after" in str(error):
        return "text after a closing quote", "text after a closing quote; double a quote that is part of the text"
    if "field larger" in str(error):
        return "a field that is too long", f"a field of more than {LONGEST_LINE} characters, or an unclosed quote"
    return "an unclosed quote", "an unclosed quote"


def _fault(row: list[str], raw: str, number: int, width: int) -> tuple[str, str] | None:
    """Reason and detail of a fault that the parser accepts; `raw` is the row's text in the file."""
    if len(row) != width:
        return "wrong number of fields", f"Row #{number}: Expected {width} columns, got {len(row)}"
    if not raw.isascii():
        try:
            raw.encode()
        except UnicodeEncodeError:
            return NOT_UTF8, NOT_UTF8
    if ' "' in raw or '\t"' in raw:
        for field in row:
            if _BLANK_BEFORE_QUOTE.match(field) and '"' + field.replace('"', '""') + '"' not in raw:
                return "a blank before a quote", "a blank before an opening quote; remove it"
    return None
