"""`tailor push` to a fake hub: which files are uploaded, which are never, and one-line errors."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tailor.cli.main import main
from tailor.export.hub import files_of
from tests.helpers.collections import embedding_model
from tests.helpers.hub import Hub, Repository, hub

FILES = {
    *("README.md", "adapter_config.json", "adapter_model.safetensors", "base.json", "chat_template.jinja"),
    *("export.json", "generation_config.json", "loss.png", "tokenizer.json", "tokenizer_config.json"),
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    import huggingface_hub.constants

    # hf_xet is a compiled client of another service; without it, files go by LFS.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    with hub(good=("me", "team"), reader=()) as made:
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        monkeypatch.setenv("HF_TOKEN", "good")
        yield made


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["push", *words]) == 2
    return capsys.readouterr().err


def test_an_adapter_is_uploaded(
    run: Path, server: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(run), "team/shop", "--base-id", "owner/base"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"pushed to {server.url}/team/shop/commit/{'0' * 40}"
    repository = server.repositories["team/shop"]
    assert repository.private
    assert repository.messages == ["Upload adapter of run"]
    files = repository.branches["main"]
    assert files.keys() == FILES
    assert files["adapter_model.safetensors"] == (run / "adapter" / "adapter_model.safetensors").read_bytes()
    assert b"# shop" in files["README.md"]
    assert str(run.parent).encode() not in b"".join(files[name] for name in files if name.endswith(".json"))
    assert not [request for request in server.requests if "checkpoints" in request or "optimizer" in request]
    # Again, merged: what an adapter alone needs is taken away.
    assert main(["push", str(run), "team/shop", "--weights", "merged", "--message", "merged now"]) == 0
    assert repository.messages[1:] == ["merged now"]
    assert {"model.safetensors", "merge.json", "config.json"} <= files.keys()
    assert not {"adapter_model.safetensors", "adapter_config.json", "base.json"} & files.keys()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.isfinite(model(torch.tensor([[5, 6]])).logits).all()


def test_a_branch_and_a_public_repository(run: Path, server: Hub) -> None:
    assert main(["push", str(run), "me/shop", "--public", "--revision", "v1"]) == 0
    repository = server.repositories["me/shop"]
    assert not repository.private
    assert repository.branches["main"] == {}
    assert repository.branches["v1"].keys() == FILES


def test_a_dry_run_sends_nothing(
    run: Path, server: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert main(["push", str(run), "me/shop", "--dry-run"]) == 0
    note, *files, last = capsys.readouterr().out.splitlines()
    assert note.startswith("note: the model card names no base")
    assert {line.split()[-1] for line in files} == FILES
    size = (run / "adapter" / "adapter_model.safetensors").stat().st_size
    assert any(line.split() == [f"{size // 1000}", "kB", "adapter_model.safetensors"] for line in files)
    assert last.startswith("dry run: 10 files, ")
    assert last.endswith(" would be uploaded to the private repository me/shop")
    assert server.requests == []


def test_errors_are_one_line_each(
    run: Path, server: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = (str(run), "me/shop")
    monkeypatch.delenv("HF_TOKEN")
    assert refusal(capsys, *target) == (
        "tailor: HF_TOKEN is not set: the hub needs a token\n  hint: set HF_TOKEN to a token with write access\n"
    )
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert refusal(capsys, *target) == (
        "tailor: the hub rejects the token in HF_TOKEN (401)\n  hint: set HF_TOKEN to a valid token with write access\n"
    )
    monkeypatch.setenv("HF_TOKEN", "reader")
    assert refusal(capsys, *target) == (
        "tailor: the token in HF_TOKEN has no write access to me/shop (403)\n"
        "  hint: use a token with write access to it, or a repository of your own\n"
    )
    monkeypatch.setenv("HF_TOKEN", "good")
    assert refusal(capsys, str(run), "shop") == (
        "tailor: 'shop' is not the name of a hub repository\n  hint: write owner/name, such as my-name/my-model\n"
    )
    assert refusal(capsys, str(run / "x"), "me/shop").startswith(f"tailor: no run at {run}/x: ")
    assert server.repositories == {}


def test_other_content_is_not_overwritten(run: Path, server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    held = {".gitattributes": b"", "poem.txt": b"roses", "LICENSE": b"free", "model.safetensors": b"another"}
    server.repositories["me/shop"] = Repository(True, {"main": dict(held)})
    assert refusal(capsys, str(run), "me/shop") == (
        "tailor: the repository me/shop already has other files, such as poem.txt\n"
        "  hint: give another repository, or put this model into it with --replace\n"
    )
    assert main(["push", str(run), "me/shop", "--replace"]) == 0
    files = server.repositories["me/shop"].branches["main"]
    assert (files["poem.txt"], files["LICENSE"]) == (b"roses", b"free")
    assert "model.safetensors" not in files, "a repository holds one model"
    capsys.readouterr()
    server.repositories["me/open"] = Repository(False)
    assert refusal(capsys, str(run), "me/open") == (
        "tailor: the repository me/open exists and is public, but the push is private\n"
        "  hint: push to it with --public, or give another repository\n"
    )


def test_a_new_branch_begins_with_the_files_of_main(
    run: Path, server: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are looked at before the branch is there. `--replace` leaves no weights of another framework beside the new ones."""
    held = {
        "config.json": b"{}",
        "pytorch_model.bin": b"old",
        "onnx/model.onnx": b"old",
        "poem.txt": b"roses",
    }
    server.repositories["me/shop"] = Repository(True, {"main": dict(held)})
    target = (str(run), "me/shop", "--revision", "v2")
    assert "already has other files, such as config.json" in refusal(capsys, *target)
    assert main(["push", *target, "--replace"]) == 0
    repository = server.repositories["me/shop"]
    assert repository.branches["main"] == held
    assert repository.branches["v2"].keys() == FILES | {"poem.txt"}


def test_weights_added_to_an_earlier_push_are_not_left_beside_new_ones(
    run: Path, server: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(run), "me/shop"]) == 0
    assert main(["push", str(run), "me/shop"]) == 0, "the control: a push replaces an earlier one"
    files = server.repositories["me/shop"].branches["main"]
    files |= {"model.Q4.gguf": b"old", "notes.txt": b"mine"}
    assert "already has other files, such as model.Q4.gguf" in refusal(capsys, str(run), "me/shop")
    assert main(["push", str(run), "me/shop", "--replace"]) == 0
    assert files.keys() == FILES | {"notes.txt"}


def test_a_card_that_the_hub_refuses_is_found_before_the_merge(
    run: Path, server: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "tailor.export.hub.fill", lambda *_: pytest.fail("merged before the card was checked")
    )
    server.refused_cards = '"license" must be one of [apache-2.0, mit]'
    assert refusal(capsys, str(run), "me/shop", "--weights", "merged").startswith(
        'tailor: the hub refuses the metadata of the model card: "license" must be one of [apache-2.0, mit]\n'
    )
    assert server.repositories == {}


def test_no_local_path_is_uploaded(run: Path, server: Hub) -> None:
    """Also without the base's id: the configurations then have the folder's name."""
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"].startswith("/"), "the control"
    assert main(["push", str(run), "me/shop"]) == 0
    files = server.repositories["me/shop"].branches["main"]
    assert str(run.parent).encode() not in b"".join(files.values())
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "base"


def test_the_hub_cannot_be_reached(
    run: Path, server: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        error = refusal(capsys, str(run), "me/shop")
    assert error.startswith("tailor: the hub cannot be reached: ")
    assert error.endswith("\n  hint: check the network and HF_ENDPOINT, then run the same command again\n")


def test_a_secret_is_not_uploaded(
    run: Path, server: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "adapter" / "NOTICE").write_text(f"token hf_{'a' * 30}\n")
    assert refusal(capsys, str(copy), "me/shop") == (
        "tailor: NOTICE seems to contain a secret; nothing was uploaded\n"
        "  hint: remove it from the run's files\n"
    )
    assert server.repositories == {}


def test_embedding_settings_are_uploaded_too(tmp_path: Path) -> None:
    folder = embedding_model(tmp_path / "model", projection=16)
    (folder / "optimizer.pt").write_bytes(b"no")
    names = {upload.name for upload in files_of(folder)}
    assert {"embedding.json", "projection.safetensors", "model.safetensors"} <= names
    assert "optimizer.pt" not in names
