"""Received models and runs, full of code, with every command: nothing of it runs, and nothing asks.

Each folder has code under every name that transformers, peft and sentence-transformers know, and says itself that it is
trusted. A payload writes a marker file.
"""

from __future__ import annotations

import builtins
import io
import json
import pickle
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tailor.artifacts.load import load_run
from tailor.artifacts.passage_scorer import Dense
from tailor.artifacts.trust import trust_of
from tailor.cli.main import main
from tailor.errors import ModelError
from tailor.models.own_code import NOTHING, Trust, granted
from tailor.spec.model import Model
from tests.helpers.collections import embedding_model
from tests.helpers.hostile import PICKLES, claim_trust, payload, plant, recommit
from tests.helpers.models import tiny_llama, with_own_code
from tests.helpers.plans import LORA
from tests.helpers.trained_runs import finished_run

REFUSAL = "is not run unless you trust it"
RECIPE = """\
model: {path: base}
data: {train: [{path: rows.jsonl}], max_length: 64}
method: {name: sft}
optim: {learning_rate: 1.0e-3}
train: {precision: fp32, batch_size: 2, micro_batch_size: 1, steps: 1}
save: {to: out-run}
"""
READ = (
    "show run",
    "runs .",
    "validate recipe.yaml",
    "plan recipe.yaml",
    "data report recipe.yaml",
    "data preview recipe.yaml",
    "average run/adapter run/adapter --to out",
    "export run --to out",
    "push run me/shop --dry-run",
)
"""Commands that need no code of the model."""
LOAD = (
    "generate run --prompt Hi --max-new-tokens 1",
    "generate run/adapter --prompt Hi --max-new-tokens 1",
    "generate base --prompt Hi --max-new-tokens 1",
    "chat run --max-new-tokens 1",
    "evaluate run tasks=[{name:\u00a0perplexity}] data.evaluation=[{path:\u00a0rows.jsonl}] data.max_length=64",
    "merge run --to out",
    "merge run --verify layers --to out",
    "export run --to out --weights merged",
    "push run me/shop --weights merged --dry-run",
    "run recipe.yaml",
)
"""Commands that build the model, so that one without a class of transformers needs its own code."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, its base, and an embedding model."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("made")
    run = finished_run(folder, {"adapter": LORA})
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace("data:", "data:\n  holdout: 0.3"))
    embedding_model(folder / "embedder")
    rows = (
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": str(n)}]}
        for n in range(8)
    )
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "texts.jsonl").write_text('{"text": "a text"}\n')
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy in the working directory, from which Python would import a payload. Nobody is there to answer."""
    folder = tmp_path / "place"
    shutil.copytree(made, folder)
    for file in (
        "run/plan.json",
        "run/adapter/adapter_config.json",
        "run/adapter/base.json",
        "run/recipe.yaml",
    ):
        (folder / file).write_text((folder / file).read_text().replace(str(made), str(folder)))
    recommit(folder / "run" / "adapter")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TAILOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    for name in ("run/adapter", "base"):
        monkeypatch.syspath_prepend(str(folder / name))

    def asked(prompt: str = "") -> str:
        if prompt:
            raise AssertionError(f"asked: {prompt}")
        raise EOFError

    monkeypatch.setattr(builtins, "input", asked)
    return folder


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "marker"


def tailor(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str]:
    """(exit code, everything that was printed) of a command with a closed standard input."""
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n") if command.startswith("chat") else closed)
    shutil.rmtree("out", ignore_errors=True)
    capsys.readouterr()
    code = main([word.replace("\u00a0", " ") for word in shlex.split(command)])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def test_nothing_runs_where_transformers_has_its_own_class(
    place: Path, marker: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (place / "base", place / "run" / "adapter", place / "embedder"):
        plant(folder, marker, unknown=False)
    claim_trust(place / "run")
    commands = (*READ, *LOAD[:3], LOAD[5], LOAD[-1], "embed embedder texts.jsonl out.parquet")
    for command in commands:
        code, printed = tailor(command, capsys, monkeypatch)
        assert not marker.exists(), f"{command}: {marker.read_text()}"
        assert code == 0, f"{command}: {printed}"
        assert "Traceback" not in printed


def test_nothing_runs_where_a_model_needs_its_code(
    place: Path, marker: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (place / "base", place / "run" / "adapter", place / "embedder"):
        plant(folder, marker, unknown=True)
    claim_trust(place / "run")
    for command in (*READ, *LOAD, "embed embedder texts.jsonl out.parquet"):
        code, printed = tailor(command, capsys, monkeypatch)
        assert not marker.exists(), f"{command}: {marker.read_text()}"
        assert code in (0, 2), f"{command}: {printed}"
        assert "Traceback" not in printed
        if command not in READ:
            assert code == 2, command
            assert REFUSAL in printed or "trust_remote_code" in printed, printed


def test_a_tokenizer_that_needs_code_is_not_asked_about(
    place: Path, marker: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a tokenizer.json, transformers is asked to convert. It would ask on the terminal, and run the code at `y`."""
    plant(place / "base", marker, unknown=True)
    (place / "base" / "tokenizer.json").unlink()
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    for command in (
        "plan recipe.yaml",
        "data report recipe.yaml",
        "data preview recipe.yaml",
        "run recipe.yaml",
    ):
        code, printed = tailor(command, capsys, monkeypatch)
        assert code == 2, printed
        assert "transformers cannot convert its tokenizer" in printed
        assert not marker.exists(), f"{command}: {marker.read_text()}"


def test_control_the_payloads_run(place: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of payload writes the marker, when it is loaded in the way that tailor avoids."""
    from transformers import AutoTokenizer

    plant(place / "base", marker, unknown=True)
    for name in PICKLES:
        with (place / "base" / name).open("rb") as file:
            pickle.load(file)
    assert marker.read_text().splitlines() == [f"pickle {name}" for name in PICKLES]
    marker.unlink()
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    (place / "base" / "tokenizer.json").unlink()
    with pytest.raises((AttributeError, ValueError, OSError)):
        AutoTokenizer.from_pretrained(str(place / "base"))
    assert "payload.py" in marker.read_text(), "it asks, and runs the code at `y`"


def trusted_place(place: Path) -> Path:
    """The base has code that works: a run on it can be used, with trust."""
    with_own_code(place / "base")
    return place


def test_the_command_line_trusts_one_model(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted_place(place)
    command = "generate run --prompt Hi --max-new-tokens 1"
    code, printed = tailor(command, capsys, monkeypatch)
    assert code == 2
    assert REFUSAL in printed
    assert "--trust-remote-code" in printed
    assert tailor(f"{command} --trust-remote-code", capsys, monkeypatch)[0] == 0
    assert tailor(command, capsys, monkeypatch)[0] == 2, "the trust ends with the command"
    for other in (
        "merge run --to out",
        "export run --to out --weights merged",
        "push run me/shop --weights merged --dry-run",
    ):
        assert tailor(other, capsys, monkeypatch)[0] == 2
        assert tailor(f"{other} --trust-remote-code", capsys, monkeypatch)[0] == 0
    # A model that is compared with has code that this command does not name.
    other = with_own_code(tiny_llama(place / "other"))
    code, printed = tailor(
        f"{LOAD[4]} compare=[other] --trust-remote-code",
        capsys,
        monkeypatch,
    )
    assert code == 2, printed
    assert str(other) in printed
    assert REFUSAL in printed


def test_trust_is_for_the_code_that_was_there(place: Path, marker: Path) -> None:
    trusted_place(place)
    trust = trust_of(["run"])
    assert trust.allows("base")
    load_run("run", trust=pickle.loads(pickle.dumps(trust)))
    (place / "base" / "later.py").write_text(payload(marker, "later"))
    assert not trust.allows("base")
    with pytest.raises(ModelError, match=REFUSAL):
        load_run("run", trust=trust)
    assert not NOTHING.allows("base")
    assert not Trust.of(place / "base").allows("run/adapter"), "a folder without code needs no trust"


@pytest.mark.parametrize(
    "reference", ["other/repo--payload.Config", "/tmp/payload.Config", "../payload.Config", "a/b.C"]
)
def test_trust_does_not_reach_code_outside_the_folder(tmp_path: Path, reference: str) -> None:
    base = with_own_code(tiny_llama(tmp_path / "base"))
    model = Model(path=str(base), trust_remote_code=True)
    assert granted(model)
    for name in ("config.json", "tokenizer_config.json"):
        before = (base / name).read_text()
        (base / name).write_text(
            json.dumps(json.loads(before) | {"auto_map": {"AutoConfig": [None, reference]}})
        )
        with pytest.raises(ModelError, match="auto_map refers to code outside the model's folder"):
            granted(model)
        (base / name).write_text(before)
    assert not granted(Model(path=str(base)))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {
                "peft_type": "PROMPT_TUNING",
                "prompt_tuning_init": "TEXT",
                "tokenizer_kwargs": {"trust_remote_code": True},
            },
            "PROMPT_TUNING",
        ),
        ({"peft_type": "XLORA", "adapters": {"0": "."}}, "XLORA"),
        ({"megatron_config": {"a": 1}, "megatron_core": "payload"}, "LoRA with Megatron"),
    ],
)
def test_adapters_that_load_other_things_are_refused(
    place: Path,
    marker: Path,
    change: dict[str, Any],
    told: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapter = plant(place / "run" / "adapter", marker, unknown=False)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | change))
    recommit(adapter)
    code, printed = tailor("generate run --prompt Hi", capsys, monkeypatch)
    assert (code, marker.exists()) == (2, False)
    assert f"is of the type {told}; supported are LoRA, LoHa, " in printed


def test_an_adapter_in_a_pickle_is_refused(
    place: Path, marker: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = plant(place / "run" / "adapter", marker, unknown=False)
    (adapter / "adapter_model.safetensors").unlink()
    recommit(adapter)
    for command in ("generate run --prompt Hi", "merge run --to out", "average run run --to out"):
        code, printed = tailor(command, capsys, monkeypatch)
        assert (code, marker.exists()) == (2, False), printed
        assert "adapter_model.safetensors" in printed


def test_an_adapter_does_not_redirect_a_base(place: Path) -> None:
    """transformers loads the model that an adapter_config.json in the folder names, in place of the folder's own."""
    (place / "base" / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(place / "other")})
    )
    import torch

    from tailor.models.load import load_network

    with pytest.raises(ModelError, match="it is an adapter and not a model"):
        load_network(Model(path="base"), dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize(
    "kind",
    [
        "payload.Module",
        "os.system",
        "sentence_transformers.models.Router",
        "sentence_transformers.models.WordEmbeddings",
    ],
)
def test_custom_modules_of_an_embedder_are_refused(tmp_path: Path, marker: Path, kind: str) -> None:
    pytest.importorskip("sentence_transformers")
    folder = plant(tiny_llama(tmp_path / "embedder"), marker, unknown=False)
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": kind}]))
    scorer = Dense(str(folder), None)
    with pytest.raises(ModelError, match="whose code tailor does not run"):
        scorer("question", ["a passage"])
    assert not marker.exists()


@pytest.mark.parametrize(
    ("task", "refused"),
    [
        ("{name: lm_eval, tasks: [payload], include: RUN}", "which may contain any code"),
        ("{name: metric, function: RUN/payload.py:text}", "runs the Python function"),
        (
            "{name: judge, judge_model: m, base_url: http://127.0.0.1:9/v1, key_variable: HOME}",
            "sends answers",
        ),
    ],
    ids=["lm_eval", "metric", "judge"],
)
def test_an_evaluation_in_a_run_folder_runs_no_code(
    place: Path,
    marker: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    refused: str,
) -> None:
    recipe = place / "run" / "recipe.yaml"
    rows = place / "run" / "payload.jsonl"
    rows.write_text('{"prompt": "a", "response": "b"}\n')
    data = f", data: {{evaluation: [{{path: {rows}}}]}}" if "lm_eval" not in task else ""
    data += ", compare: base" if "judge" in task else ""
    task = task.replace("RUN", str(place / "run"))
    recipe.write_text(recipe.read_text() + f"evaluate: {{final: {{tasks: [{task}]{data}}}}}\n")
    (place / "run" / "payload.yaml").write_text("task: payload\ndoc_to_text: !function payload.text\n")
    (place / "run" / "payload.py").write_text(payload(marker, "task"))
    code, printed = tailor("evaluate run", capsys, monkeypatch)
    assert (code, marker.exists()) == (2, False), printed
    assert refused in printed


ESCAPES = (
    "{{ cycler.__init__.__globals__.os.system('touch MARKER') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ lipsum.__globals__['os'].popen('touch MARKER').read() }}",
    "{{ raise_exception.__globals__['__builtins__']['open']('MARKER', 'w') }}",
    "{{ strftime_now.__globals__['__builtins__']['__import__']('os').system('touch MARKER') }}",
    "{% for c in [].__class__.__base__.__subclasses__() %}{{ c }}{% endfor %}",
    "{% include '/etc/passwd' %}",
    "{{ messages.append(messages) }}",
)


def test_a_chat_template_does_not_escape(
    place: Path, marker: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for escape in ESCAPES:
        (place / "base" / "chat_template.jinja").write_text(escape.replace("MARKER", str(marker)))
        code, printed = tailor("data report recipe.yaml", capsys, monkeypatch)
        assert (code, marker.exists()) == (2, False), f"{escape}: {printed}"
        assert "root:" not in printed


def test_weights_come_from_the_models_own_folder(tmp_path: Path) -> None:
    import torch

    from tailor.artifacts.tensors import Reader
    from tailor.models.load import load_network

    base = tiny_llama(tmp_path / "base")
    secret = (base / "model.safetensors").rename(tmp_path / "secret.safetensors")
    for name in ("../secret.safetensors", str(secret), "sub/../../secret.safetensors", "..", "a\\b"):
        (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        for read in (
            lambda: Reader.of_model(base),
            lambda: load_network(Model(path=str(base)), dtype=torch.float32, device=torch.device("cpu")),
        ):
            with pytest.raises(ModelError, match="which is not in the folder of the model"):
                read()


def test_links_out_of_a_folder_are_not_copied(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "secret.txt").write_text("SECRET")
    for folder, name in (
        ("base", "LICENSE"),
        ("base", "extra.txt"),
        ("run/adapter", "notes.txt"),
        ("base", "code.py"),
    ):
        (place / folder / name).symlink_to(place / "secret.txt")
    (place / "base" / "NOTICE").symlink_to("NOTICE.md")
    (place / "base" / "NOTICE.md").write_text("stays")
    recommit(place / "run" / "adapter")
    for command in ("merge run --to out", "export run --to out", "average run/adapter run/adapter --to out"):
        code, printed = tailor(command, capsys, monkeypatch)
        assert code == 0, printed
        assert not any(
            b"SECRET" in file.read_bytes() for file in (place / "out").rglob("*") if file.is_file()
        )
        assert "is a link to a file outside the model's folder and was not copied" in printed
        assert command != "merge run --to out" or (place / "out" / "NOTICE").read_text() == "stays"
