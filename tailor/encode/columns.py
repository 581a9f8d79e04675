"""Names of columns that the user gave: each must exist in the rows."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence

from tailor.encode.readers import FileRange, load_dataset
from tailor.errors import DataError

_SHOWN = 20


def require_columns(
    named: Iterable[tuple[str, str]],
    found: Collection[str],
    keys: Iterable[str],
    files: Sequence[FileRange],
    context: str,
) -> None:
    """DataError for a column that no row has.

    named: (what named it, column), for messages. found: the named columns that some row has. keys: columns of some rows. A
    column of a table exists even if all its values are null, so tables among `files` are asked for their columns.
    """
    absent = [(what, column) for what, column in named if column not in found]
    if not absent:
        return
    declared = dict.fromkeys(name for part in files for name in _declared(part))
    for what, column in absent:
        if column not in declared:
            existing = list(dict.fromkeys([*declared, *map(str, keys)]))
            shown = ", ".join(existing[:_SHOWN]) + (" …" if len(existing) > _SHOWN else "")
            raise DataError(
                f"{context}: {what}: no row has the column `{column}`; the columns are {shown}",
                hint=near_column(column, existing) or "name one of these columns",
            )


def near_column(column: str, existing: Iterable[str]) -> str:
    """`did you mean …?` for a column with a similar name; empty if there is none."""
    close = difflib.get_close_matches(
        column.lower(), lower := {str(one).lower(): one for one in existing}, n=1
    )
    return f"did you mean {lower[close[0]]}?" if close else ""


def _declared(part: FileRange) -> list[str]:
    """The columns that the file itself lists; none for JSON and text, where each row has its own."""
    from tailor.encode import delimited
    from tailor.store import opened

    if part.kind == "dataset":
        return list(load_dataset(part).column_names)
    if part.kind == "parquet":
        import pyarrow.parquet as pq

        with opened(part.url, compression="infer") as stream:
            return list(pq.read_schema(stream).names)
    if part.kind in ("csv", "tsv"):
        with opened(part.url, compression="infer") as stream:
            return delimited.columns(stream, part.label, "," if part.kind == "csv" else "\t")
    return []
