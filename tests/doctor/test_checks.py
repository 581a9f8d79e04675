"""The checks of `tailor doctor`, each on a machine that lacks what it looks for."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tailor import machine
from tailor.doctor import kernels
from tailor.doctor.checks import disk, gguf, gpu, hub, memory, network, packages, ray, tokens, versions
from tailor.doctor.finding import GIB, Check, Context, Finding
from tailor.spec.recipe import Recipe
from tests.helpers.hub import hub as served_hub
from tests.helpers.models import byte_tokenizer, sentencepiece_bytes, tiny_llama
from tests.helpers.programs import run_forked
from tests.helpers.tokenizers import bpe_tokenizer


def recipe(**sections: Any) -> Recipe:
    values: dict[str, Any] = {
        "model": {"path": "owner/model"},
        "data": {"train": [{"path": "hf://owner/rows"}, {"path": "hf://datasets/team/files/train.jsonl"}]},
        "method": {"name": "sft"},
        "optim": {"learning_rate": 1e-4},
        "save": {"to": "runs/x"},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return Recipe.model_validate(values)


def found(check: Check, made: Recipe | None = None, *, offline: bool = False) -> list[Finding]:
    return list(check(Context(made, offline)))


def statuses(findings: list[Finding]) -> list[str]:
    return [one.status for one in findings]


def test_required_versions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert set(statuses(list(versions.unsatisfied()))) <= {"ok"}
    monkeypatch.setattr(
        versions.metadata, "requires", lambda _: ["numpy>=999", "nowhere>=1", 'x>=1; extra == "dev"']
    )
    assert [(one.status, one.message) for one in versions.unsatisfied()] == [
        ("failed", f"numpy>=999 is required, and {versions.version('numpy')} is installed"),
        ("failed", "nowhere>=1 is required, and none is installed"),
    ]
    constraints = tmp_path / "constraints.txt"
    constraints.write_text(
        f"peft==0.0.1\ntorch=={str(versions.version('torch')).partition('+')[0]}\nray==9; python_version < '4'\n"
    )
    (other,) = versions.untested(constraints)
    assert other.status == "warning"
    assert f"peft {versions.version('peft')} (tested: 0.0.1)" in other.message
    assert "torch" not in other.message


def test_packages_that_the_recipe_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(packages.check) == []
    made = recipe(
        model={"path": "base.gguf", "adapter": {}, "kernels": "liger"},
        optim={"optimizer": "schedule_free"},
        save={"to": "gs://bucket/x"},
        evaluate={"final": {"tasks": [{"name": "rouge"}]}},
        track={"wandb": {"project": "p"}},
    )
    monkeypatch.setattr(packages, "find_spec", lambda _: None)
    lines = {one.message: one.hint for one in found(packages.check, made)}
    assert lines["model.path needs the package gguf"] == "pip install 'tailor[gguf]'"
    assert lines["save.to needs the package gcsfs"] == "pip install 'gcsfs'"
    assert lines["evaluate.final: rouge needs the package rouge_score"] == "pip install 'tailor[evaluate]'"
    assert len(lines) == 6
    zero = recipe(scale={"workers": 2, "strategy": {"name": "deepspeed", "stage": 2}})
    assert [one.message for one in found(packages.check, zero)] == [
        "scale.strategy needs the package deepspeed"
    ]
    assert found(packages.check, recipe(scale={"workers": 2, "strategy": "fsdp"})) == []
    monkeypatch.setattr(packages, "find_spec", lambda _: object())
    assert statuses(found(packages.check, made)) == ["ok"], "control"


GPU = {"name": "A100", "memory": 80 * GIB, "free": 79 * GIB}
KERNELS = dict.fromkeys(kernels.KERNELS, "")


def test_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {"torch": "2.13.0", "error": "", "devices": [GPU, GPU], "kernels": KERNELS}
    works = list(gpu.findings(seen, recipe(scale={"workers": 2})))
    assert statuses(works) == ["ok", "ok"]
    assert works[0].message == "A100 (80 GiB, 79 free), A100 (80 GiB, 79 free)"
    assert statuses(list(gpu.findings(seen, recipe(scale={"workers": 4})))) == ["warning", "ok"]
    busy = {**seen, "devices": [{**GPU, "free": 20 * GIB}]}
    assert "other processes use the memory of A100" in [one.message for one in gpu.findings(busy, None)]
    no_nf4 = {**seen, "kernels": {**KERNELS, "4-bit weights (nf4)": "no kernel image"}}
    quantized = recipe(model={"adapter": {}, "quantize": {}})
    assert statuses(list(gpu.findings(no_nf4, quantized))) == ["ok", "failed", "ok"]
    assert statuses(list(gpu.findings(no_nf4, recipe()))) == ["ok", "warning", "ok"]
    (blind,) = gpu.findings({**seen, "devices": [], "error": "driver too old"}, None)
    assert "sees no GPU: driver too old" in blind.message

    monkeypatch.setattr(gpu, "has_device", lambda: False)
    assert statuses(found(gpu.check, recipe(scale={"gpu": True}))) == ["failed"]
    assert statuses(found(gpu.check, recipe())) == ["ok"]


def test_a_driver_that_ends_or_blocks_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "has_device", lambda: True)
    monkeypatch.setattr(gpu, "PROBE", [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    (ended,) = found(gpu.check)
    assert (ended.status, "code -9: no message" in ended.message) == ("failed", True)

    def late(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("probe", 90)

    monkeypatch.setattr(gpu.subprocess, "run", late)
    (blocked,) = found(gpu.check)
    assert "did not respond" in blocked.message


def test_kernels_without_a_gpu() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("a GPU")
    seen = kernels.report()
    assert (seen["devices"], seen["kernels"]) == ([], {})
    assert seen["error"]


@pytest.mark.gpu
def test_kernels_of_this_gpu() -> None:
    assert set(kernels.report()["kernels"].values()) == {""}


def test_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert statuses(found(memory.check)) == ["ok"]
    monkeypatch.setattr(machine, "memory_bytes", lambda: 2 * GIB)
    assert statuses(found(memory.check)) == ["warning"]
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(3 * GIB)
    (large,) = found(memory.check, recipe(model={"path": str(tmp_path)}))
    assert (large.status, "have 3.0 GiB" in large.message) == ("failed", True)


def test_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Usage(NamedTuple):
        free: int

    made = recipe(save={"to": str(tmp_path / "not" / "yet")})
    for free, status in ((GIB // 2, "failed"), (5 * GIB, "warning"), (500 * GIB, "ok")):
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda _, free=free: Usage(free))
        assert set(statuses(found(disk.check, made))) == {status}
    assert not (tmp_path / "not").exists(), "nothing is made"
    monkeypatch.setattr(disk.os, "access", lambda *_: False)
    assert found(disk.check, made)[0].message == f"save.to: this user may not write to {tmp_path}"
    remote = [label for label, _ in disk.folders(Context(recipe(save={"to": "s3://b/x"})))]
    assert "save.to" not in remote


def test_names_and_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError("not known")

    two, resolve = recipe(scale={"workers": 2}), socket.getaddrinfo
    own = socket.gethostname()
    monkeypatch.setattr(
        network.socket, "getaddrinfo", lambda host, *more: fails() if host == own else resolve(host, *more)
    )
    assert statuses(found(network.check, recipe())) == ["ok"]
    assert statuses(found(network.check, two)) == ["ok", "warning"]
    monkeypatch.setattr(network.socket, "create_connection", fails)
    assert statuses(found(network.check)) == ["failed"]


def test_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(machine, "cpus", lambda: 2)
    assert "not needed" in found(ray.check, recipe())[0].message
    assert found(ray.check, recipe(scale={"workers": 2}))[0].message.startswith("a local instance can start")
    assert statuses(found(ray.check, recipe(scale={"workers": 8})))[-1] == "warning"
    monkeypatch.setattr(ray, "SHARED", tmp_path / "none")
    assert statuses(found(ray.check, recipe(scale={"workers": 2}))) == ["warning"]
    monkeypatch.setattr(ray, "find_spec", lambda _: None)
    assert statuses(found(ray.check, recipe(scale={"workers": 2}))) == ["failed"]
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        joins = recipe(scale={"address": f"127.0.0.1:{server.getsockname()[1]}"})
        assert statuses(found(ray.check, joins)) == ["failed"]
        assert statuses(found(ray.check, joins, offline=True)) == ["ok"]
        server.listen()
        assert statuses(found(ray.check, joins)) == ["ok"], "control"


def test_tokens_are_never_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_ACCESS_KEY_ID", "AWS_PROFILE", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    made = recipe(
        save={"to": "s3://bucket/x"}, track={"wandb": {"project": "p"}}, export={"push_to_hub": "me/m"}
    )
    assert statuses(found(tokens.check, made)) == ["failed", "warning", "warning"]
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_ACCESS_KEY_ID"):
        monkeypatch.setenv(name, "very-secret-value")
    present = found(tokens.check, made)
    assert statuses(present) == ["ok", "ok", "ok"]
    assert "very-secret" not in str([*present, *found(tokens.check)])
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text("very-secret-value")
    assert "hf auth login" in found(tokens.check, made)[0].message


def test_gated_models_and_datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    names = ("model.path", "data.train.0.path", "data.train.1.path")
    with served_hub(good=("me",), other=()) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        server.readers = {"models/owner/model": ("good",), "datasets/owner/rows": ()}
        lines = [one.message for one in found(hub.check, recipe())]
        assert lines == [
            f"{names[0]}: owner/model is gated and cannot be opened without a token",
            f"{names[1]}: owner/rows can be opened",
            f"{names[2]}: team/files does not exist on the hub, or is private",
        ]
        monkeypatch.setenv("HF_TOKEN", "other")
        gated = found(hub.check, recipe())[0]
        assert gated.message.endswith("cannot be opened with this token")
        assert "https://huggingface.co/owner/model" in gated.hint
        monkeypatch.setenv("HF_TOKEN", "wrong")
        assert found(hub.check, recipe())[0].message == f"{names[0]}: the hub refuses the token"
        monkeypatch.setenv("HF_TOKEN", "good")
        assert found(hub.check, recipe())[0].status == "ok"
        count = len(server.requests)
        assert set(statuses(found(hub.check, recipe(), offline=True))) == {"warning"}
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert set(statuses(found(hub.check, recipe()))) == {"warning"}
        assert len(server.requests) == count
        monkeypatch.delenv("HF_HUB_OFFLINE")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
    gone = found(hub.check, recipe())
    assert set(statuses(gone)) == {"warning"}
    assert "cannot be reached" in gone[0].message
    (tmp_path / "models--owner--model").mkdir()
    assert found(hub.check, recipe())[0].status == "ok"
    assert found(hub.check, recipe(model={"path": str(tmp_path)}))[0].message.startswith(names[1])


def test_whether_llama_cpp_can_have_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cyllama")
    monkeypatch.setattr("tailor.export.gguf.programs.run", run_forked)
    base = sentencepiece_bytes(tiny_llama(tmp_path / "base"))
    base.joinpath("model.safetensors").unlink()
    (known,) = found(gguf.check, recipe(model={"path": str(base)}))
    assert (known.status, known.hint) == ("ok", "")
    unknown = byte_tokenizer(base)
    content = json.loads((unknown / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "NFKC"}
    (unknown / "tokenizer.json").write_text(json.dumps(content))
    (one,) = found(gguf.check, recipe(model={"path": str(base)}))
    assert one.status == "warning"
    assert "it does not know the tokenizer" in one.message
    assert one.hint.endswith("; training does not need it")
    assert found(gguf.check, recipe(model={"path": "owner/model"})) == [], "it is not on this machine"


def test_a_base_at_which_llama_cpp_ends_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The converter fills a vocabulary that is larger than the tokenizer with `[PAD…]`, and a token may have such a name."""
    pytest.importorskip("cyllama")
    monkeypatch.setattr("tailor.export.gguf.programs.run", run_forked)
    tokenizer = partial(bpe_tokenizer, tags=())
    base = tiny_llama(tmp_path / "base", tokenizer=tokenizer, vocab_size=512, bos_token_id=0, eos_token_id=1)
    path = base / "tokenizer.json"
    content = json.loads(path.read_text())
    last = max(content["added_tokens"], key=lambda token: token["id"])
    findings = []
    for name in ("[PAD500]", "[PAD600]"):  # the second is the control
        tokens = [*content["added_tokens"], {**last, "id": last["id"] + 1, "content": name}]
        path.write_text(json.dumps({**content, "added_tokens": tokens}))
        findings += found(gguf.check, recipe(model={"path": str(base)}))
    assert statuses(findings) == ["warning", "ok"], findings
    assert findings[0].message.startswith("export as GGUF: llama.cpp cannot read the file: ")
    assert findings[0].message.endswith(
        "GGML_ASSERT(id_to_token.size() == token_to_id.size()) failed (SIGABRT)"
    )
