"""Conversions of Axolotl's datasets: the sources of `data.train` and `data.evaluation`."""

from __future__ import annotations

import os
from typing import Any

from tailor.spec.moving.draft import Argument, Draft, mapping
from tailor.spec.moving.sources import EVALUATION, TRAIN, add, hub_path, sliced
from tailor.spec.trainers.rows import Verdict, refuse, skip

_LOADERS = ("json", "csv", "parquet", "text", "arrow")
"""Names of `load_dataset` that read the files of `data_files`."""
_TURN_FIELDS = ("tool_calls", "tools", "name", "reasoning_content", "thinking", "tool_call_id")
_AXOLOTL_FORMATS = {
    "alpaca": "alpaca",
    "alpaca_chat": "alpaca",
    "sharegpt": "sharegpt",
    "completion": "text",
    "pretrain": "text",
    "chat_template": "messages",
}


def axolotl_datasets(draft: Draft, argument: Argument) -> Verdict | str | None:
    return _axolotl(draft, argument, TRAIN)


def axolotl_tests(draft: Draft, argument: Argument) -> Verdict | str | None:
    return _axolotl(draft, argument, EVALUATION)


def axolotl_pretraining(draft: Draft, argument: Argument) -> Verdict | str | None:
    if not argument.value:
        return skip("empty")
    draft.put("method.name", "pretrain", argument)
    value = [{"path": argument.value}] if isinstance(argument.value, str) else argument.value
    return _axolotl(draft, Argument(argument.name, value, argument.line), TRAIN, texts=True)


def _axolotl(draft: Draft, argument: Argument, key: str, *, texts: bool = False) -> Verdict | str | None:
    items = argument.value if isinstance(argument.value, list) else [argument.value]
    remarks: list[str] = []
    found: list[dict[str, Any]] = []
    for item in items:
        one = {"path": item} if isinstance(item, str) else mapping(item)
        if not one.get("path"):
            remarks.append("a source without a path is left out")
            continue
        own = mapping(one.get("type"))
        kind = "" if own else str(one.get("type") or ("pretrain" if texts else ""))
        if kind.startswith(("rwd", "bradley_terry", "stepwise_supervised")) or kind.endswith(".transform"):
            why = (
                "a Python function makes the rows"
                if kind.endswith(".transform")
                else "reward models are not trained"
            )
            return refuse(f"type {kind}: {why}")
        source, said = _axolotl_source(draft, one, kind)
        found += [{**source, "path": path} for path in _paths(source["path"], one.get("data_files"))]
        remarks += said
    if not found:
        return skip("empty")
    add(draft, key, found, argument)
    return "; ".join(dict.fromkeys(remarks)) or None


def _axolotl_source(draft: Draft, one: Any, kind: str) -> tuple[dict[str, Any], list[str]]:
    """The source of one entry of Axolotl's datasets, and what it does not say."""
    remarks: list[str] = []
    files = one.get("data_files")
    source: dict[str, Any] = {"path": hub_path(draft, str(one["path"]))}
    if files and source["path"].startswith("hf://"):
        remarks.append(
            "data_files: all files of the dataset are read; download them and name them to select some"
        )
    preference = draft.given("rl") not in (None, False, "")
    name = kind.split(".")[0].split(":")[0]
    form = _AXOLOTL_FORMATS.get(name)
    properties = mapping(one.get("message_property_mappings"))
    turns = {properties.get("role"), one.get("message_field_role")} & {"from"}
    fields = {*properties.values(), one.get("message_field_role"), one.get("message_field_content")}
    if others := sorted(map(str, fields - {None, "role", "content", "from", "value", *_TURN_FIELDS})):
        remarks.append(f"turns with the fields {', '.join(others)}: rename them to role and content")
    column = one.get("field_messages")
    if form == "messages" and turns:
        form = "sharegpt"
    if preference:
        columns = {
            field: str(given)
            for field, given in (
                ("prompt", column),
                ("chosen", one.get("field_chosen")),
                ("rejected", one.get("field_rejected")),
            )
            if given and str(given) != field
        }
        if kind.startswith("chat_template") and columns:
            source |= {"format": "preference", "columns": columns}
    elif form:
        source["format"] = form
        field = {"messages": "messages", "sharegpt": "conversations", "text": "text"}.get(form)
        given = column if form != "text" else one.get("field") or one.get("text_column")
        if form == "sharegpt" and name == "chat_template" and not given:
            given = "messages"
        if field and given and given != field:
            source["columns"] = {field: str(given)}
    elif one.get("type") and not kind:
        source |= _own_columns(mapping(one["type"]))
        remarks.append("a type of its own: the chat template renders the rows, not its `format`")
    elif kind:
        remarks.append(f"type {kind}: the format is detected from the first rows")
    if one.get("name"):
        source["subset"] = str(one["name"])
    if one.get("split") and (said := sliced(source, str(one["split"]))):
        remarks.append(said)
    known = {
        "path",
        "type",
        "split",
        "name",
        "field",
        "text_column",
        "field_messages",
        "message_property_mappings",
        "message_field_role",
        "message_field_content",
        "data_files",
        "field_chosen",
        "field_rejected",
        "ds_type",
        "roles",
        "trust_remote_code",
    }
    if rest := sorted(str(key) for key in one if key not in known and one[key] not in (None, False)):
        remarks.append(f"without {', '.join(rest)}")
    return source, remarks


def _paths(path: str, files: Any) -> list[str]:
    """The paths of an entry with `data_files`. A loader such as `json` is no folder."""
    if not files or not isinstance(files, (str, list)) or path.startswith("hf://"):
        return [path]
    folder = "" if path in _LOADERS else path
    return [os.path.join(folder, str(file)) for file in ([files] if isinstance(files, str) else files)]


def _own_columns(kind: Any) -> dict[str, Any]:
    """Format and columns of a type that names the fields of its rows."""
    names = {field: str(kind.get(f"field_{field}") or field) for field in ("instruction", "input", "output")}
    if kind.get("field_system"):
        names["system"] = str(kind["field_system"])
    if not kind.get("field_instruction"):
        return {"format": "text", "columns": {"text": names["output"]}}
    columns = {field: name for field, name in names.items() if field != name}
    return {"format": "alpaca", **({"columns": columns} if columns else {})}
