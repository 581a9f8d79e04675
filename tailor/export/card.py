"""The model card of a run: YAML metadata for the hub, then usage, training, data, evaluation and license."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from tailor.encode.tokenizer import load_tokenizer
from tailor.export.forms.base import CardSection
from tailor.export.markdown import code, folded, inline, table, without_local_paths
from tailor.export.usage import EMBED, base_folder, rerank_usage, usage
from tailor.layout import LOSS_PLOT, MERGE_RECORD, MODEL_CONFIG, RECIPE
from tailor.printable import printable
from tailor.redaction import redacted
from tailor.runs import evaluations
from tailor.runs.log import Record, of_kind, read
from tailor.runs.report.page import (
    best_step,
    data_table,
    exact_match,
    lost_rows,
    paired_answers,
    summary,
)
from tailor.spec.load import dump
from tailor.spec.reading.source import parse
from tailor.spec.tasks.retrieval import Retrieval
from tailor.store import OBJECT, Store, run_files

SAMPLES = 3
_DATASET = re.compile(r"([\w-][\w.-]*/)?[\w-][\w.-]*", re.ASCII)


def card(
    run: Store,
    folder: Path,
    weights: str,
    *,
    base: str | None,
    name: str,
    curve: bool,
    step: int | None = None,
    section: CardSection | None = None,
) -> str:
    """The text of README.md.

    folder: the exported folder. base: the base's id on the hub, if known. curve: whether the folder has the loss plot. step:
    of the exported checkpoint; None for the run's artifact. section: the export form's part of the card.
    """
    plan, data = run_files.plan(run), run_files.data_report(run)
    records = read(run)
    measured = _measured(run, records, plan, step)
    head = front_matter(plan, data, measured, weights, base=base, name=name)
    if section is not None:
        head |= {**section.metadata, "tags": [*section.tags, *head["tags"]]}
    parts = [
        _metadata(head),
        f"# {inline(name)}\n",
        _intro(plan, weights, base),
        f"## Use\n\n{section.use}"
        if section is not None
        else rerank_usage(weights, base)
        if run_files.ranks(run)
        else EMBED
        if run_files.only_embeds(run)
        else usage(plan["model"], weights, base, converses=load_tokenizer(str(folder)).template is not None),
        "## Training\n",
        table(["", ""], [without_local_paths(row) for row in summary(run, records) if row[0] != "Model"]),
    ]
    if curve:
        parts.append(f"![loss by step]({LOSS_PLOT})\n")
    if (folder / MERGE_RECORD).is_file():
        parts.append(_merge(OBJECT.read_path(folder / MERGE_RECORD)))
    if data:
        header, sources = data_table(data)
        parts += ["## Data\n", table(header, without_local_paths(sources))]
        parts += [f"- left out: {inline(without_local_paths(line))}\n" for line in lost_rows(data)]
    parts += _evaluation(measured, paired_answers(run)[:SAMPLES] if step is None else [])
    if run.exists(RECIPE):
        parts.append(folded("Recipe", "yaml", public_recipe(run.read_text(RECIPE))))
    environment = run_files.environment(run)
    versions = {"tailor": environment.get("tailor"), "python": environment.get("python")}
    versions |= environment.get("packages", {})
    known = [[package, version] for package, version in versions.items() if version]
    parts += ["## Versions\n", table(["package", "version"], known)]
    parts.append(_license_words(head.get("license"), base))
    return "\n".join(parts)


def draft(run: Store, weights: str, *, base: str | None, name: str) -> str:
    """The metadata of the card before the weights are written, in the form of a README.md."""
    plan, data = run_files.plan(run), run_files.data_report(run)
    return _metadata(
        front_matter(plan, data, _measured(run, read(run), plan, None), weights, base=base, name=name)
    )


def _metadata(head: dict[str, Any]) -> str:
    return f"---\n{yaml.safe_dump(_public(head), sort_keys=False, allow_unicode=True)}---\n"


def front_matter(
    plan: dict[str, Any],
    data: dict[str, Any],
    measured: list[Record],
    weights: str,
    *,
    base: str | None,
    name: str,
) -> dict[str, Any]:
    """The YAML metadata for the hub. Unknown values are left out. measured: evaluation records of the exported weights."""
    model = plan["model"]
    tags = ["tailor", plan["method"]["name"]]
    if adapter := model.get("adapter"):
        kind = adapter.get("type", "lora")
        tags += ["qlora" if model.get("quantize") and kind == "lora" else kind]
    sets = dataset_ids(str(source["path"]) for source in data.get("sources", []))
    head: dict[str, Any] = {}
    if base is not None:
        head |= {"base_model": base, "base_model_relation": "adapter" if weights == "adapter" else "finetune"}
    head |= {
        "library_name": "peft" if weights == "adapter" else "transformers",
        "pipeline_tag": "text-ranking"
        if "ranking_weight" in plan["method"]
        else "feature-extraction"
        if plan["method"].get("mode") == "embedding"
        else "text-generation",
    }
    if license := base_license(base_folder(model)):
        head["license"] = license
    if sets:
        head["datasets"] = sets
    head["tags"] = tags
    if results := [*_results(_metrics(measured), _GENERATION), *_results(_retrieval(measured), _RETRIEVAL)]:
        head["model-index"] = [{"name": name, "results": results}]
    return head


_GENERATION = (
    {"type": "text-generation", "name": "Text generation"},
    {"type": "held-out", "name": "held-out rows of the training recipe"},
)
_RETRIEVAL = (
    {"type": "information-retrieval", "name": "Information retrieval"},
    {"type": "held-out", "name": "retrieval collection of the training recipe"},
)
"""Task and dataset of the results in the metadata."""


def _results(
    metrics: list[dict[str, Any]], about: tuple[dict[str, str], dict[str, str]]
) -> list[dict[str, Any]]:
    task, dataset = about
    return [{"task": dict(task), "dataset": dict(dataset), "metrics": metrics}] if metrics else []


def dataset_ids(paths: Iterable[str]) -> list[str]:
    """The ids on the hub (`owner/name`, or `name`) of the datasets among the sources' paths."""
    found = set()
    for path in paths:
        if path.startswith("hf://"):
            parts = path.removeprefix("hf://").removeprefix("datasets/").split("/")[:2]
            found.add("/".join(part.split("@")[0] for part in parts))
    return sorted(one for one in found if _DATASET.fullmatch(one))


def base_license(folder: Path) -> str | None:
    """The license in the base's model card or config.json; None when they have none."""
    if (folder / "README.md").is_file():
        text = (folder / "README.md").read_text(encoding="utf-8")
        if text.startswith("---\n") and "\n---" in text[4:]:
            try:
                values = yaml.safe_load(text[4:].split("\n---", 1)[0])
            except yaml.YAMLError:
                values = None
            if isinstance(values, dict) and isinstance(values.get("license"), str):
                return str(values["license"])
    if (folder / MODEL_CONFIG).is_file():
        license = OBJECT.read_path(folder / MODEL_CONFIG).get("license")
        return license if isinstance(license, str) else None
    return None


def public_recipe(text: str) -> str:
    """A recipe without the paths of local folders."""
    document = parse(text, RECIPE)
    if document.problems or not isinstance(document.values, dict):
        return str(without_local_paths(text))
    return dump(without_local_paths(document.values))


def _public(value: Any) -> Any:
    """Metadata as text that every YAML reader takes: no secrets and no control characters."""
    if isinstance(value, dict):
        return {key: _public(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_public(inner) for inner in value]
    return printable(redacted(value)) if isinstance(value, str) else value


def _measured(run: Store, records: list[Record], plan: dict[str, Any], step: int | None) -> list[Record]:
    """The evaluation records of the exported weights.

    They are those of the checkpoint's step, or of the artifact's step (the best one, if the run keeps the best). Generated
    answers and the evaluation at the end are only available for the artifact.
    """
    made_from = best_step(records, plan) if step is None else step
    found = [
        record
        for kind in ("evaluation", "retrieval")
        for record in of_kind(records, kind)
        if made_from is None or record["step"] == made_from
    ]
    if step is not None:
        return found
    if evaluations.FINAL in evaluations.names(run):
        entries = evaluations.read(run, evaluations.FINAL)["figures"]
        values = {one["figure"]: next(iter(one["models"].values()))["value"] for one in entries}
        if not values.keys().isdisjoint(Retrieval.figures):
            found.append({"kind": "retrieval", **values})
    return found + of_kind(records, "generation")


def _retrieval(records: list[Record]) -> list[dict[str, Any]]:
    """The last retrieval metrics: of the evaluation at the end, or of training. Names are those of MTEB."""
    return [
        {"type": key.replace("@", "_at_"), "name": key, "value": round(record[key], 6)}
        for record in of_kind(records, "retrieval")[-1:]
        for key in Retrieval.figures
        if record.get(key) is not None
    ]


def _metrics(records: list[Record]) -> list[dict[str, Any]]:
    found = []
    evaluation = of_kind(records, "evaluation")
    if evaluation:
        last = evaluation[-1]
        for key in ("loss", "ndcg_at_10", "embedding_accuracy", "perplexity", "token_accuracy"):
            if last.get(key) is not None:
                found.append({"type": key, "name": key.replace("_", " "), "value": round(last[key], 6)})
    if "after" in (matches := exact_match(records)):
        found.append({"type": "exact_match", "name": "exact match", "value": round(matches["after"], 6)})
    return found


def _intro(plan: dict[str, Any], weights: str, base: str | None) -> str:
    of = (
        f"[{inline(base)}](https://huggingface.co/{quote(base)})"
        if base
        else "a base model without a known hub id"
    )
    what = {"adapter": "An adapter for", "merged": "Fine-tuned from", "model": "Fine-tuned from"}[weights]
    return f"{what} {of}, trained with tailor by the method {code(plan['method']['name'])}.\n"


def _merge(record: dict[str, Any]) -> str:
    quantize = record["trained_with"]["quantize"]
    onto = "the base's weights"
    if record["onto"] == "dequantized":
        onto = f"the base's weights as in training ({quantize['type']}, dequantized)"
    figures = record["verification"]
    if figures["check"] == "layers":
        measured_words = (
            f"largest relative error of an output, on {figures['rows']}: {figures['layer_error']:.1e}"
        )
    elif figures["check"] == "embeddings":
        measured_words = (
            f"on {figures['rows']}, its embeddings differ from those of base and adapter by {figures['error']:.1e} of their length "
            f"(at most {figures['max_error']:.1e}; cosine at least {figures['min_cosine']:.6f})"
        )
    elif figures["check"] == "scores":
        measured_words = (
            f"on {figures['rows']}, its scores differ from those of base and adapter by {figures['error']:.1e} of their size "
            f"(at most {figures['max_difference']:.1e})"
        )
    else:
        measured_words = (
            f"on {figures['rows']}, its logits differ from those of base and adapter by at most {figures['max_difference']:.1e} "
            f"({figures['mean_difference']:.1e} on average; KL {figures['kl']:.1e} nats per token, top-1 agreement {figures['top1']:.1%})"
        )
    return f"The adapter was merged into {onto}. Verification: {measured_words}.\n"


def _evaluation(measured: list[Record], answers: list[dict[str, Any]]) -> list[str]:
    parts = ["## Evaluation\n"]
    for metrics, where in (
        (_metrics(measured), "On held-out rows, which were not used for training:\n"),
        (_retrieval(measured), "On the retrieval collection of the recipe:\n"),
    ):
        if metrics:
            rows = [[metric["name"], f"{metric['value']:.4g}"] for metric in metrics]
            parts += [where, table(["metric", "value"], rows)]
    if len(parts) == 1:
        return []
    if answers:
        rows = [
            [str(answer[key] or "") for key in ("prompt", "before", "answer", "reference")]
            for answer in answers
        ]
        parts.append(table(["question", "before training", "after", "reference"], rows))
    return parts


def _license_words(license: str | None, base: str | None) -> str:
    if license:
        return f"## License\n\n{code(license)}, taken from the base model. The licenses of the training data apply too.\n"
    of = inline(base or "the base")
    return f"## License\n\nUnknown: the files of {of} name no license. The licenses of the base and of the training data apply.\n"
