"""The images' Dockerfiles and the compose file keep the rules; an engine is not needed to see it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tailor.kube.pods import USER
from tailor.kube.spec import Cluster
from tests.docker.dockerfile import SECRET, ignored, problems, stages

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
GOOD = """\
ARG VERSION=1.2
FROM python:${VERSION}-slim AS build
ENV PIP_NO_CACHE_DIR=1
RUN pip install -c constraints.txt .
FROM python:${VERSION}-slim
RUN apt-get update \\
    # why
    && apt-get install -y --no-install-recommends g++ \\
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/venv /opt/venv
COPY recipes /recipes
ENTRYPOINT ["tini"]
USER 1000
"""


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_the_rules(path: Path) -> None:
    assert problems(path.read_text(), ROOT) == []


def test_both_images_are_there() -> None:
    assert [path.name for path in DOCKERFILES] == ["Dockerfile.cpu", "Dockerfile.gpu"]


@pytest.mark.parametrize(
    ("before", "after", "refusal"),
    [
        ("FROM python:${VERSION}-slim\n", "FROM python\n", "python: a base without a version"),
        ("FROM python:${VERSION}-slim\n", "FROM python:latest\n", "python:latest: a base without"),
        ("ARG VERSION=1.2\n", "", "a base without a version"),
        ("USER 1000\n", "", "the last USER"),
        ("USER 1000\n", "USER root\n", "the last USER"),
        ("USER 1000\n", "USER 0:1000\n", "the last USER"),
        ("USER 1000\n", "USER 1000\nRUN true\n", "USER is not the last"),
        (" --no-install-recommends", "", "line 6: no `--no-install-recommends`"),
        (" \\\n    && rm -rf /var/lib/apt/lists/*", "", "line 6: no `rm -rf"),
        ("apt-get update \\\n", "true \\\n", "line 6: no `apt-get update`"),
        ("COPY recipes", "RUN apt-get update\nCOPY recipes", "in a layer of its own"),
        ("COPY recipes", "RUN curl https://x.org/install | sh\nCOPY recipes", "a script from the net"),
        (" -c constraints.txt", "", "line 4: pip installs without"),
        ("ENV PIP_NO_CACHE_DIR=1\n", "", "line 3: pip's cache"),
        ("COPY recipes", "ADD recipes", "ADD"),
        ("COPY recipes", "COPY recipies", "recipies is not in the tree"),
        ("COPY recipes", "COPY tests", "tests is left out by .dockerignore"),
        ("--from=build", "--from=builder", "no stage builder"),
        ("USER 1000", "ARG HF_TOKEN\nUSER 1000", "HF_TOKEN stays"),
        ("USER 1000", "ENV A=b AWS_SECRET_ACCESS_KEY=x\nUSER 1000", "AWS_SECRET_ACCESS_KEY stays"),
        ('ENTRYPOINT ["tini"]', "ENTRYPOINT tini", "through a shell"),
    ],
)
def test_mistakes_are_seen(before: str, after: str, refusal: str) -> None:
    """Control: each rule refuses what it is for."""
    assert problems(GOOD, ROOT) == []
    assert before in GOOD
    found = problems(GOOD.replace(before, after), ROOT)
    assert any(refusal in problem for problem in found), found


def test_what_is_left_out() -> None:
    rules = (ROOT / ".dockerignore").read_text()
    for path in (".git", ".venv", "tests/conftest.py", "runs/x", "tailor/__pycache__", "a/__pycache__/b"):
        assert ignored(path, rules), path
    for path in ("tailor/cli/run.py", "recipes/quickstart/base", "constraints.txt"):
        assert not ignored(path, rules), path


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_the_image_suits_the_manifests(path: Path) -> None:
    """What pods take for granted: the user, the folder, `ray` and `tailor` on any PATH, a HOME and caches to write."""
    last = stages(path.read_text())[-1]
    text = " ".join(f"{instruction.name} {instruction.text}" for instruction in last.instructions)
    (user,) = last.all("USER")
    assert user.text == str(USER)
    (folder,) = last.all("WORKDIR")
    assert folder.text == Cluster.model_fields["working_dir"].default
    assert f"useradd --create-home --uid {USER}" in text
    assert re.search(r"ln -s .*/bin/ray .*/bin/tailor .*/usr/local/bin/", text)
    assert "HOME=/home/tailor" in text
    cache = Cluster.model_fields["cache"].default.mount
    assert re.search(rf"mkdir -p [^&]*{cache}\b", text)
    assert f"TAILOR_CACHE={cache}/tailor" in text
    ports = {int(port) for instruction in last.all("EXPOSE") for port in instruction.text.split()}
    assert ports == {6379, 8080, 8265, 10001}
    assert any(
        '".[jobs,serve,wandb,mlflow]"' in run.text
        for stage in stages(path.read_text())
        for run in stage.all("RUN")
    )


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
    return found


def test_compose() -> None:
    services = compose()["services"]
    assert set(services) == {"s3", "bucket", "head", "worker"}
    for name, service in services.items():
        build = service.get("build")
        if build:
            assert (ROOT / build["dockerfile"]).is_file()
            assert (ROOT / "docker" / build["context"]).resolve() == ROOT
        else:
            tag = service["image"].rpartition("/")[2].partition(":")[2]
            assert re.search(r"\d", tag), f"{name}: an image without a version"
        for variable, value in service["environment"].items():
            if SECRET.search(variable) or "PASSWORD" in variable:
                assert value.startswith("${"), f"{name}: {variable} is written out"
                assert ":?" in value
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name}: open to the network"
        for other, wait in service.get("depends_on", {}).items():
            assert wait["condition"] == "service_completed_successfully" or "healthcheck" in services[other]


def test_the_readme_names_what_is_there() -> None:
    text = (ROOT / "docker" / "README.md").read_text()
    for path in DOCKERFILES:
        arguments = set(re.findall(r"^ARG (\w+)", path.read_text(), re.MULTILINE))
        assert f"docker/{path.name}" in text
        assert arguments <= set(re.findall(r"`(\w+)`", text)), path.name
    required = set(re.findall(r"\$\{(\w+):\?", (ROOT / "docker" / "compose.yaml").read_text()))
    exported = set(re.findall(r"export (\w+)=", text))
    assert required == exported
    for line in re.findall(r"^docker .*-f (\S+)", text, re.MULTILINE):
        assert (ROOT / shlex.split(line)[0]).is_file()
