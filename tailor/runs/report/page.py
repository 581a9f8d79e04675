"""`report.html`: a self-contained page about a run. Its plots are also written as PNG files."""

from __future__ import annotations

import base64
import json
from datetime import datetime
from statistics import median
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from tailor.layout import EVALUATION, FIGURES, RECIPE, REPORT
from tailor.runs import context_lengths, evaluations
from tailor.runs.log import Record, of_kind, read
from tailor.runs.origin import changed, origins
from tailor.runs.report import heatmap, plots
from tailor.runs.report.templates import render
from tailor.runs.status import Status, state_of, step_of
from tailor.runs.words import duration, seconds_between, size
from tailor.spec.adapter_kinds import KINDS
from tailor.store import run_files, run_folder

if TYPE_CHECKING:
    from tailor.store import Store

TEMPLATE = "report.html.jinja"
SAMPLES = 8
"""Number of generated answers on the page."""
LARGE, SMALL = (9.6, 3.6), (4.6, 2.8)
"""Sizes of the first plot and of the others in inches, as they are shown: then their labels have the size of the text."""


def write(run: Store) -> None:
    """Draw the plots and write the page from the files in the run's folder."""
    records, data = read(run), run_files.data_report(run)
    drawn = plots.draw(records)
    for plot in drawn:
        run.write_bytes(plot.file, plot.png)
    page = render(
        TEMPLATE,
        name=run_folder.name(run),
        url=run.url,
        status=Status.read(run),
        summary=summary(run, records),
        plots=[(plot.title, Markup(plot.svg(*(SMALL if at else LARGE)))) for at, plot in enumerate(drawn)],
        data=used_columns(*data_table(data)),
        lost=lost_rows(data),
        answers=paired_answers(run)[:SAMPLES],
        evaluations=[evaluation(run, name) for name in evaluations.names(run)],
        recipe=run.read_text(RECIPE) if run.exists(RECIPE) else "",
        environment=json.dumps(run_files.environment(run), indent=2, ensure_ascii=False),
    )
    run.write_text(REPORT, page)


def evaluation(run: Store, name: str) -> dict[str, Any]:
    """The page's data about an evaluation: its table, plots and first answers."""
    results = evaluations.read(run, name)
    folder = run.join(f"{EVALUATION}/{name}")
    files = [FIGURES, *(f"{task}.png" for task in results.get("grids", {}))]
    files += [heatmap.PERPLEXITY] * bool(results.get("positions"))
    return {
        "name": name,
        "table": evaluations.table(results),
        "beacons": [
            f"{model}: {evaluations.compression(ratios)}"
            for model, ratios in results.get("beacons", {}).items()
        ],
        "context_lengths": list(context_lengths.lines(results.get("effective_lengths", {}))),
        "tables_by_value": evaluations.tables_by_value(results),
        "models": list(results["models"]),
        "intervals": results["intervals"],
        "failed": results["failed"],
        "plots": [Markup(base64.b64encode(folder.read_bytes(file)).decode()) for file in files],
        "samples": [
            (kind, evaluations.rows(folder, kind, file, list(results["models"]), SAMPLES))
            for kind, file in evaluations.rows_to_show(folder)
        ],
    }


def summary(run: Store, records: list[Record]) -> list[tuple[str, str]]:
    """(label, text) rows of the summary table, which `tailor show` prints too."""
    status, plan = Status.read(run), run_files.plan_if_written(run)
    train, evaluation = of_kind(records, "train"), of_kind(records, "evaluation")
    rows: list[tuple[str, str]] = []
    if plan:
        rows += [("Model", plan["model"]["path"]), ("Method", method_words(plan))]
    if status is not None:
        rows.append(("State", f"{state_of(run, status)}, step {step_of(status, records)} of {status.steps}"))
        if status.ended:
            rows.append(
                (
                    "Time",
                    f"{duration(seconds_between(status.started, status.ended))}, from {_day(status.started)}",
                )
            )
        if status.failures:
            times = f"{len(status.failures)} time" + ("s" if len(status.failures) > 1 else "")
            rows.append(("Worker failures", f"{times}; last error: {status.failures[-1]['error']}"))
    for origin in origins(run):
        source = "this run" if origin.run == run.url else origin.run
        rows.append(
            (f"From step {origin.step + 1}", f"resumed from {source} with {', '.join(changed(origin))}")
        )
    if skipped := sum(bool(record.get("diverged")) for record in train):
        rows.append(("Diverged", f"{skipped} of {len(train)} steps, skipped"))
    if train:
        rows.append(("Training loss", f"{_loss(train[0])} → {_loss(train[-1])}"))
    if evaluation:
        last = evaluation[-1]
        first = f"{_loss(evaluation[0])} → " if len(evaluation) > 1 else ""
        rows.append(("Evaluation loss", f"{first}{_loss(last)}"))
        if "token_accuracy" in last:
            rows.append(
                ("Token accuracy", f"{last['token_accuracy']:.1%} of {last['supervised_tokens']:,} tokens")
            )
        if "reward_accuracy" in last:
            accuracies = [f"{record['reward_accuracy']:.1%}" for record in (evaluation[0], last)]
            rows.append(
                ("Reward accuracy", " → ".join(accuracies if len(evaluation) > 1 else accuracies[-1:]))
            )
            if last.get("reward_margin") is not None:
                rows.append(("Reward margin", f"{last['reward_margin']:.4g}"))
    if (best := best_step(records, plan)) is not None:
        rows.append(("Artifact", f"from step {best}, which has the lowest evaluation loss"))
    matches = exact_match(records)
    if matches:
        rows.append(("Exact match", " → ".join(f"{value:.1%} {when}" for when, value in matches.items())))
    if retrieval := of_kind(records, "retrieval"):
        ends = retrieval if len(retrieval) == 1 else (retrieval[0], retrieval[-1])
        for name in ("recall@1", "ndcg@10"):
            values = " → ".join(f"{record[name]:.1%}" for record in ends)
            rows.append((name.upper() if name[0] == "n" else name.capitalize(), values))
    for name in evaluations.names(run):
        rows.append((f"Evaluation {name}", evaluations.one_line(evaluations.read(run, name))))
    if len(train) > 1:
        speed = median(record["tokens_per_second"] for record in train[1:])
        waiting = 100 * _share(train[1:], "data_seconds")
        rows.append(("Speed", f"{speed:,.0f} tokens/s (median), {waiting:.1f}% of the time waiting for data"))
        rows.append(("Padding", f"{sum(record['padding'] for record in train) / len(train):.1%}"))
        rows.append(("Peak memory", f"{size(_peak(train))} {_memory_words(plan)}"))
        if _peak(evaluation):
            rows.append(("Peak memory, evaluation", size(_peak(evaluation))))
    return rows


def _peak(records: list[Record]) -> int:
    return max((record.get("peak_memory_bytes") or 0 for record in records), default=0)


def _memory_words(plan: dict[str, Any]) -> str:
    """What the peak memory includes. On a CPU it is the whole process with its libraries, so no estimate is shown."""
    if not plan.get("gpu"):
        return "in the worker process"
    estimate = sum(value for name, value in (plan.get("memory") or {}).items() if name != "host")
    return f"per worker; the plan estimated {size(estimate)} for model and activations"


def best_step(records: list[Record], plan: dict[str, Any]) -> int | None:
    """The step from which the artifact was made if `save.best` selected it, else None."""
    if not (plan.get("save") or {}).get("best"):
        return None
    return next((int(record["made_from"]) for record in reversed(of_kind(records, "artifact"))), None)


def method_words(plan: dict[str, Any]) -> str:
    """The method and what it trains, such as `sft, LoRA of rank 16 on a base model in nf4`."""
    adapter, quantize = plan["model"].get("adapter"), plan["model"].get("quantize")
    loss = plan["method"].get("loss")
    words = plan["method"]["name"] + (f" with the {loss} loss, " if loss else ", ")
    if plan["model"].get("beacon"):
        words += "activation beacons"
        return words + (f" on a base model in {quantize['type']}" if quantize else "")
    if adapter is None:
        return words + "all weights"
    kind = KINDS[adapter.get("type", "lora")]
    words += "DoRA" if adapter.get("dora") else kind.label
    words += f" of rank {adapter['rank']}" if "rank" in kind.keys else ""
    return words + (f" on a base model in {quantize['type']}" if quantize else "")


def exact_match(records: list[Record]) -> dict[str, float]:
    """Exact-match rate `before` and `after` training, as far as it was measured."""
    rates = {record["when"]: record["exact_match"] for record in of_kind(records, "generation")}
    return {when: rates[when] for when in ("before", "after") if when in rates}


def paired_answers(run: Store) -> list[dict[str, Any]]:
    """Each answer generated after training, with the one generated before training as `before`."""
    earlier: dict[tuple[Any, ...], list[str]] = {}
    for answer in run_files.answers(run, "before"):
        earlier.setdefault(_row(answer), []).append(answer["answer"])
    return [
        {**answer, "before": next(iter(earlier.get(_row(answer), ())), None)}
        for answer in run_files.answers(run, "after")
    ]


def _row(answer: Record) -> tuple[Any, ...]:
    """The data row of an answer, and its prompt: a conversation can have several."""
    return tuple(answer.get(key) for key in ("source", "file", "row", "prompt"))


def data_table(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the data table, one row per source."""
    head = ["Source", "Format", "Rows", "Kept", "Unreadable", "Dropped", "Removed", "Truncated", "Chunked"]
    head += ["Tokens", "Supervised", "Median length", "Longest"]
    rows = []
    for source in report.get("sources", []):
        lengths = source["lengths"]
        counts = [
            source["rows"],
            source["kept"],
            _lost(source["unreadable"]),
            _lost(source["dropped"]),
            _lost(source.get("removed", {})),
            source["truncated"],
            source["chunked"],
            source["tokens"],
            source["supervised_tokens"],
            lengths.get("p50", 0),
            lengths.get("max", 0),
        ]
        rows.append([source["path"], source["format"], *(f"{count:,}" for count in counts)])
    return head, rows


def used_columns(head: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """The data table without the columns of counts that are 0 for every source."""
    used = [at for at in range(len(head)) if any(row[at] != "0" for row in rows)]
    return [head[at] for at in used], [[row[at] for at in used] for row in rows]


def lost_rows(report: dict[str, Any]) -> list[str]:
    """Why rows were left out, with the first rows, one line per source and reason."""
    return [
        f"{lost['count']:,} {reason.replace('_', ' ')}: "
        + "; ".join(f"{name} {detail}".strip() for name, detail in lost["first"])
        for source in report.get("sources", [])
        for reason, lost in {**source["unreadable"], **source["dropped"], **source.get("removed", {})}.items()
    ]


def _lost(reasons: dict[str, Any]) -> int:
    return sum(rows["count"] for rows in reasons.values())


def _share(records: list[Record], key: str) -> float:
    total: float = sum(record["step_seconds"] for record in records)
    return float(sum(record[key] for record in records)) / total


def _loss(record: Record) -> str:
    return "not finite" if record["loss"] is None else f"{record['loss']:.4f}"


def _day(moment: str) -> str:
    return datetime.fromisoformat(moment).strftime("%Y-%m-%d %H:%M UTC")
