"""Damage to files of an annotation."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq


def damage(file: Path, column: str) -> None:
    """Change the last byte of the last page of a column of a Parquet file."""
    data, group = bytearray(file.read_bytes()), pq.ParquetFile(file).metadata.row_group(0)
    (chunk,) = (
        group.column(number)
        for number in range(group.num_columns)
        if group.column(number).path_in_schema.partition(".")[0] == column
    )
    start = chunk.data_page_offset if chunk.dictionary_page_offset is None else chunk.dictionary_page_offset
    data[start + chunk.total_compressed_size - 1] ^= 1
    file.write_bytes(bytes(data))
