"""Conversions of datasets: the sources of `data.train` and `data.evaluation`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from typing import Any

from tailor.spec.moving.draft import Argument, Draft, mapping, number
from tailor.spec.trainers.datasets import LLAMA_FACTORY, TORCHTUNE, TORCHTUNE_FORMATS
from tailor.spec.trainers.rows import Verdict, no, refuse

TRAIN, EVALUATION = "data.train", "data.evaluation"
MAX_BYTES = 1 << 20
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SPLIT = re.compile(r"([\w.-]+?)(?:\[(\d*%?):(\d*%?)\])?")
_FILES = (".json", ".jsonl", ".parquet", ".csv", ".txt", ".zst", ".gz", ".arrow", ".yaml")


def neighbor(draft: Draft, name: str) -> Any:
    """The JSON file of this name beside the imported file or in this folder, or None."""
    for path in (name, os.path.join(draft.folder, name), os.path.join(draft.folder, os.path.basename(name))):
        try:
            if os.path.isfile(path) and os.path.getsize(path) <= MAX_BYTES:
                with open(path, encoding="utf-8") as file:
                    return json.load(file)
        except (OSError, ValueError, RecursionError):
            return None
    return None


def hub_path(draft: Draft, name: str) -> str:
    """A dataset's name as the path of a source: a local path stays, `owner/name` is a dataset of the hub."""
    local = os.path.exists(name) or os.path.exists(os.path.join(draft.folder, name))
    if "://" in name or local or name.startswith((".", "/", "~")) or name.lower().endswith(_FILES):
        return name
    return f"hf://{name}" if _HUB.fullmatch(name) else name


def add(draft: Draft, key: str, found: Iterable[dict[str, Any]], argument: Argument) -> None:
    draft.put(key, [*draft.values.get(key, []), *found], argument)


def sliced(source: dict[str, Any], split: str) -> str | None:
    """Set split and limit from `train[:1000]`. Returns what the recipe does not say."""
    match = _SPLIT.fullmatch(split.strip())
    if match is None:
        return f"split {split} is a mixture: write one source per split"
    name, start, end = match[1], match[2], match[3]
    if name != "train":
        source["split"] = name
    if end and not start and end.isdecimal() and int(end):
        source["limit"] = int(end)
    elif start or end:
        return f"all rows of the split instead of [{start}:{end}]; set limit"
    return None


def factory_datasets(draft: Draft, argument: Argument) -> Verdict | str | None:
    return _factory(draft, argument, TRAIN)


def factory_evaluation(draft: Draft, argument: Argument) -> Verdict | str | None:
    return _factory(draft, argument, EVALUATION)


def _factory(draft: Draft, argument: Argument, key: str) -> Verdict | str | None:
    given = argument.value if isinstance(argument.value, list) else str(argument.value).split(",")
    folder = str(draft.given("dataset_dir") or "data").removeprefix("REMOTE:")
    remote = str(draft.given("dataset_dir") or "").startswith(("REMOTE:", "ONLINE"))
    table = mapping(neighbor(draft, os.path.join(folder, "dataset_info.json")))
    found, remarks = [], []
    for name in (str(one).strip() for one in given):
        if name in table:
            source = _described(folder, mapping(table[name]))
        elif name in LLAMA_FACTORY:
            path, form = LLAMA_FACTORY[name]
            source = {"path": path if "://" in path else f"{folder}/{path}"}
            if form != "auto":
                source["format"] = form
        elif any(word in name for word in ("mllm", "llava", "pokemon", "vlfeedback", "rlhf_v", "rlaif_v")):
            return refuse(f"{name}: models are trained on text; images, audio and video are not supported")
        else:
            source = {"path": hub_path(draft, name)}
            remarks.append(f"{name} is not known here: write the path that dataset_info.json has for it")
        found.append(source)
    if remote:
        remarks.append(f"the files are in the hub repository {folder}: download them")
        for source in found:
            source["path"] = source["path"].replace(f"{folder}/", "data/")
    add(draft, key, found, argument)
    return "; ".join(remarks) or None


def _described(folder: str, entry: Any) -> dict[str, Any]:
    """A source from an entry of dataset_info.json."""
    name = entry.get("hf_hub_url")
    source: dict[str, Any] = {
        "path": f"hf://{name}" if name else os.path.join(folder, str(entry.get("file_name")))
    }
    columns = mapping(entry.get("columns"))
    tags = mapping(entry.get("tags"))
    turns = entry.get("formatting") == "sharegpt"
    openai = tags.get("role_tag") == "role"
    if entry.get("ranking"):
        source["format"] = (
            "preference_sharegpt"
            if turns and not openai
            else "preference_alpaca"
            if not turns
            else "preference"
        )
    elif "kto_tag" in columns:
        source["format"] = "auto"
    else:
        source["format"] = "messages" if turns and openai else "sharegpt" if turns else "auto"
    field = "conversations" if source["format"] == "sharegpt" else "messages"
    if source["format"] in ("messages", "sharegpt") and columns.get("messages") not in (None, field):
        source["columns"] = {field: str(columns["messages"])}
    if source["format"] == "auto":
        del source["format"]
    for one in ("subset", "split"):
        if entry.get(one) and (one, entry[one]) != ("split", "train"):
            source[one] = str(entry[one])
    return source


def factory_v1(draft: Draft, argument: Argument) -> Verdict | str | None:
    return no(f"write its sources into data.train: {argument.value} is a list of datasets that is not read")


def hub_dataset(draft: Draft, argument: Argument) -> Verdict | str | None:
    found: list[dict[str, Any]] = []
    for one in argument.value if isinstance(argument.value, list) else [argument.value]:
        entry = mapping(one)
        source: dict[str, Any] = {"path": hub_path(draft, str(entry.get("path") if entry else one))}
        if entry.get("name"):
            source["subset"] = str(entry["name"])
        if entry.get("split"):
            sliced(source, str(entry["split"]))
        found.append(source)
    add(draft, TRAIN, found, argument)
    return None


def subset(draft: Draft, argument: Argument) -> None:
    draft.put("=subset", str(argument.value), argument)
    _says(draft, argument)


def split(draft: Draft, argument: Argument) -> None:
    draft.put("=split", str(argument.value), argument)
    _says(draft, argument)


def limit(draft: Draft, argument: Argument) -> Verdict | None:
    draft.put("=limit", number(argument.value), argument)
    _says(draft, argument)
    return None


def samples(draft: Draft, argument: Argument) -> None:
    draft.put("=samples", number(argument.value), argument)
    _says(draft, argument)


def text_field(draft: Draft, argument: Argument) -> None:
    draft.put("=text_field", str(argument.value), argument)
    _says(draft, argument)


def test_split(draft: Draft, argument: Argument) -> None:
    draft.put("=test_split", str(argument.value), argument)


def _says(draft: Draft, argument: Argument) -> None:
    if argument.name in draft.answers:
        draft.answers[argument.name].keys.append(draft.trainer.rows[argument.name].keys[0])


def firefly_rows(draft: Draft, argument: Argument) -> None:
    _firefly(draft, argument, TRAIN)


def firefly_evaluation(draft: Draft, argument: Argument) -> None:
    _firefly(draft, argument, EVALUATION)


def _firefly(draft: Draft, argument: Argument, key: str) -> None:
    task = str(draft.given("task_type") or "sft").lower()
    source: dict[str, Any] = {"path": str(argument.value)}
    if task == "sft" and "chatglm3" not in str(argument.value):
        source["format"] = "firefly"
    elif task == "pretrain":
        source["format"] = "text"
    add(draft, key, [source], argument)


def gritlm_rows(draft: Draft, argument: Argument) -> None:
    add(draft, TRAIN, [{"path": hub_path(draft, str(argument.value))}], argument)


def long_rows(draft: Draft, argument: Argument) -> str | None:
    return _long(draft, argument, TRAIN)


def long_evaluation(draft: Draft, argument: Argument) -> str | None:
    return _long(draft, argument, EVALUATION)


def _long(draft: Draft, argument: Argument, key: str) -> str | None:
    root = str(draft.given("data_root") or "/data/long-llm")
    found = []
    for one in argument.value if isinstance(argument.value, list) else [argument.value]:
        match = re.fullmatch(r"(?:long-llm:|activation-beacon:)?(.*?)(?:\[(\d+)\])?", str(one), re.DOTALL)
        assert match is not None  # every text matches
        path = os.path.join(root, match[1]) if ":" in str(one) and "://" not in str(one) else match[1]
        found.append({"path": path, **({"limit": int(match[2])} if match[2] else {})})
    add(draft, key, found, argument)
    return None


def tune_dataset(draft: Draft, argument: Argument) -> Verdict | str | None:
    name = str(argument.value).rsplit(".", 1)[-1]
    if name in ("multimodal_chat_dataset", "the_cauldron_dataset", "llava_instruct_dataset", "vqa_dataset"):
        return refuse("models are trained on text; images, audio and video are not supported")
    source = draft.given("dataset.source")
    path, form = TORCHTUNE.get(name, (None, TORCHTUNE_FORMATS.get(name, "auto")))
    if source == "json" and draft.given("dataset.data_files"):
        source = draft.given("dataset.data_files")
    if source:
        path = hub_path(draft, str(source))
    if path is None:
        return no(f"{name} is not known here: write data.train")
    add(draft, TRAIN, [{"path": path, **({"format": form} if form != "auto" else {})}], argument)
    if name.startswith("alpaca_") and draft.given("dataset.train_on_input") is None:
        draft.put("method.train_on", "everything", remark=f"default of {name}: train_on_input: true")
    if name in ("stack_exchange_paired_dataset", "hh_rlhf_helpful_dataset", "preference_dataset"):
        draft.put("method.name", "dpo", argument)
    if name in ("text_completion_dataset", "wikitext_dataset", "cnn_dailymail_articles_dataset"):
        draft.put("method.name", "pretrain", argument)
    return None


def tune_source(draft: Draft, argument: Argument) -> None:
    _says(draft, argument)


def tune_columns(draft: Draft, argument: Argument) -> Verdict | None:
    if isinstance(argument.value, dict):
        names = {"input": "instruction", "output": "output"}
        draft.put(
            "=columns",
            {names.get(str(key), str(key)): str(value) for key, value in argument.value.items()},
            argument,
        )
    else:
        draft.put(
            "=columns",
            {"conversations" if "conversation" in argument.name else "text": str(argument.value)},
            argument,
        )
    _says(draft, argument)
    return None
