"""No command writes or prints a secret, wherever the user put it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tailor import redaction
from tailor.cli.main import main
from tailor.errors import StoreError
from tailor.export.card import card
from tailor.layout import GENERATED
from tailor.runs.report import page
from tailor.runs.status import Status
from tailor.store import Store
from tailor.store.failures import naming
from tests.helpers.models import byte_tokenizer
from tests.helpers.run_folders import make_run
from tests.helpers.secrets import FORMS, NEEDLE
from tests.kube.test_broken import FULL as CLUSTER

RECIPE = """\
model: {path: org/base}
data: {train: [{path: hf://org/x}]}
method: {name: sft}
optim: {learning_rate: 1e-4}
train: {steps: 3}
save: {to: s3://bucket/x}
"""
Plant = Callable[[str], list[str]]
"""Function (secret) -> the command. It writes the files that the command reads."""


def _file(name: str, text: str) -> str:
    Path("planted").mkdir(exist_ok=True)
    Path("planted", name).write_text(text)
    return f"planted/{name}"


def _recipe(old: str, new: str) -> Plant:
    assert old in RECIPE
    return lambda secret: [
        "validate",
        _file("r.yaml", RECIPE.replace(old, new.replace("SECRET", json.dumps(secret)))),
    ]


def _override(text: str) -> Plant:
    return lambda secret: ["validate", _file("r.yaml", RECIPE), text.replace("SECRET", secret)]


def _cluster(addition: str) -> Plant:
    def plant(secret: str) -> list[str]:
        cluster = CLUSTER.replace("annotations: {l: m}", "") + addition.replace("SECRET", json.dumps(secret))
        recipe = _file("r.yaml", RECIPE)
        return ["manifest", recipe, "--cluster", _file("c.yaml", cluster)]

    return plant


def _deepspeed(secret: str) -> list[str]:
    config = _file("ds.json", json.dumps({"optimizer": {"type": secret}}))
    strategy = f"scale: {{gpu: false, strategy: {{name: deepspeed, stage: 2, config: {config}}}}}\n"
    return ["validate", _file("r.yaml", RECIPE + strategy)]


PLACES: dict[str, Plant] = {
    "model.path": _recipe("org/base", "SECRET"),
    "data path": _recipe("hf://org/x", "SECRET"),
    "template argument": _recipe("}]}", "}], template_arguments: {x: SECRET}}"),
    "save.to": _recipe("s3://bucket/x", "SECRET"),
    "tracker": _recipe("save:", "track: {wandb: {project: SECRET}}\nsave:"),
    "unknown key": _recipe("steps:", "SECRET:"),
    "value of an unknown key": _recipe("steps: 3", "steps: 3, stepz: SECRET"),
    "value of another type": _recipe("steps: 3", "steps: SECRET"),
    "alias": _recipe("org/base}", "org/base, revision: *x SECRET}"),
    "extends": _recipe("model:", "extends: SECRET\nmodel:"),
    "override": _override("save.to=SECRET"),
    "key of an override": _override("SECRET.x=1"),
    "override of another type": _override("train.steps='SECRET'"),
    "argument": _override("SECRET"),
    "option": lambda secret: ["manifest", _file("r.yaml", RECIPE), f"--cluster={secret}"],
    "run": lambda secret: ["show", secret],
    "folder of runs": lambda secret: ["runs", secret],
    "evaluation": lambda secret: [
        "evaluate",
        "no-run",
        "--with",
        _file("e.yaml", f"tasks: [{{name: perplexity, data: [{{path: {json.dumps(secret)}}}]}}]\n"),
    ],
    "environment of pods": _cluster("env2: SECRET\n"),
    "annotation": _cluster("annotations: {x: SECRET}\n"),
    "DeepSpeed JSON": _deepspeed,
}


def leaks(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Places and forms of which a part is printed or written."""
    found = []
    for place, plant in PLACES.items():
        for form, secret in FORMS.items():
            command = plant(secret)
            code = main(command)
            printed = "".join(capsys.readouterr())
            shutil.rmtree("planted", ignore_errors=True)
            written = [path for path in Path().rglob("*") if path.is_file() and NEEDLE in path.read_text()]
            assert code in (0, 2), (place, form, printed)
            if NEEDLE in printed or written:
                found.append(f"{place}: {form}")
    return found


def test_nothing_is_printed_or_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(FORMS) >= 30
    assert len(PLACES) >= 12
    assert leaks(capsys) == []


def _without_redaction(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_BY_SHAPE", "_BY_KEY", "_URLS"):
        monkeypatch.setattr(redaction, name, ())


def test_without_redaction_they_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Control."""
    monkeypatch.chdir(tmp_path)
    _without_redaction(monkeypatch)
    monkeypatch.setattr("tests.cli.test_secrets.FORMS", {"JSON web token": FORMS["JSON web token"]})
    places = {leak.split(":")[0] for leak in leaks(capsys)}
    assert len(places) >= 10, places


def documents(folder: Path) -> dict[str, str]:
    """What is made of a run whose files have every form: the report, the status, the model card."""
    run = make_run(str(folder / "run"))
    everything = " ; ".join(FORMS.values())
    plan = run.read_json("plan.json")
    plan["model"] |= {"revision": None, "quantize": None}
    run.write_json("plan.json", plan)
    (folder / "run" / "recipe.yaml").write_text(
        (folder / "run" / "recipe.yaml").read_text() + f"  note: {json.dumps(everything)}\n"
    )
    counts = dict.fromkeys(("rows", "kept", "truncated", "chunked", "tokens", "supervised_tokens"), 1)
    lost = {"empty": {"count": 1, "first": [["rows.jsonl:1", everything]]}}
    source = {
        "path": FORMS["password"],
        "format": "messages",
        "unreadable": {},
        "dropped": lost,
        "lengths": {},
        **counts,
    }
    data = {"template": "chatml", "tokens": "/data/tokens", "sources": [source]}
    (folder / "run" / "data.json").write_text(json.dumps(data))
    status = Status.read(run)
    assert status is not None
    status.error = everything
    status.write(run)
    answers = [{"prompt": everything, "answer": everything, "reference": everything, "exact": False}]
    for when in ("before", "after"):
        run.write_text(GENERATED[when], "".join(json.dumps(answer) + "\n" for answer in answers))
    page.write(run)
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    byte_tokenizer(tokenizer)
    text = card(run, tokenizer, "adapter", base=None, name="x", curve=False)
    return {"report": run.read_text("report.html"), "status": run.read_text("status.json"), "card": text}


def test_documents_of_a_run(tmp_path: Path) -> None:
    for name, text in documents(tmp_path).items():
        assert NEEDLE not in text, name
        assert "***" in text, name


def test_documents_without_redaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control."""
    _without_redaction(monkeypatch)
    for name, text in documents(tmp_path).items():
        assert NEEDLE in text, name


@pytest.mark.parametrize("form", FORMS)
def test_errors_of_storage(form: str) -> None:
    with pytest.raises(StoreError) as caught, naming(FORMS[form]):
        raise OSError(f"403 for {FORMS[form]}")
    assert NEEDLE not in str(caught.value)
    assert NEEDLE not in repr(caught.value)


def test_ordinary_values_are_written(tmp_path: Path) -> None:
    run = Store(str(tmp_path))
    values = Status(
        "failed", "2026-01-02T10:00:00.000+00:00", error="revision " + "0a" * 20 + " of /home/me/x"
    )
    values.write(run)
    assert Status.read(run) == values
