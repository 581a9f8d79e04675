"""The generated files in `cluster/` and `docs/` are up to date."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from tailor.cli.main import main
from tailor.kube.manifest import load_cluster
from tailor.kube.spec import RAY_VERSION, REFERENCE, Cluster
from tailor.spec.reading.json_schema import schema, schema_text
from tailor.spec.reading.reference import reference
from tailor.spec.reading.source import parse
from tests.kube.helpers import CLUSTER
from tests.kube.kuberay import KINDS, problems

ROOT = Path(__file__).parents[2]
CLUSTERS = sorted((ROOT / "cluster").glob("*.yaml"))
EXAMPLES = sorted((ROOT / "cluster" / "examples").glob("*.yaml"))


def test_committed_schema_is_current() -> None:
    assert (ROOT / "cluster" / "schema.json").read_text() == schema_text(Cluster), "run `make docs`"


def test_committed_reference_is_current() -> None:
    committed = (ROOT / "docs" / "cluster-reference.md").read_text()
    assert committed == reference(Cluster, REFERENCE), "run `make docs`"
    for line in committed.splitlines():
        assert not (line.startswith("| `") and line.endswith("|  |")), line


def test_the_commands_print_schema_and_reference(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--cluster"]) == 0
    assert capsys.readouterr().out == schema_text(Cluster)
    assert main(["schema", "--cluster", "--reference"]) == 0
    assert capsys.readouterr().out == reference(Cluster, REFERENCE)


def errors(text: str) -> list[str]:
    validator = jsonschema.Draft202012Validator(schema(Cluster))
    return [error.message for error in validator.iter_errors(parse(text, "c").values)]


def test_schema_agrees_with_the_spec() -> None:
    jsonschema.Draft202012Validator.check_schema(schema(Cluster))
    assert errors(CLUSTER) == []
    assert errors("extends: k8s.yaml\nworker: {gpu: 4}\n") == []
    assert errors("worker: {cpu: 4, memory: 8Gi}\n")
    assert errors(CLUSTER + "replicas: 4\n")
    assert errors(CLUSTER + "volumes: [{name: a}]\n")


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.stem)
def test_shipped_cluster_files(path: Path) -> None:
    load_cluster(str(path))
    assert "# yaml-language-server: $schema=schema.json" in path.read_text()
    assert errors(path.read_text()) == []


def command(text: str) -> list[str]:
    """The arguments of `tailor` in an example's first line."""
    match = re.match(r"# Written by: tailor (.*)\n", text)
    assert match, "an example begins with its command"
    return shlex.split(match[1])


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_equal_the_output_of_their_command(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(command(path.read_text())) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    if request.config.getoption("--update-fixtures"):
        path.write_text(printed.out)
    assert path.read_text() == printed.out, "update it: pytest tests/kube --update-fixtures"
    for value in yaml.safe_load_all(printed.out):
        assert problems(value) == []
        assert value["kind"] in (*KINDS, "ConfigMap")


def test_every_cluster_file_has_its_example() -> None:
    named = {word for path in EXAMPLES for word in command(path.read_text())}
    assert {f"cluster/{path.name}" for path in CLUSTERS} <= named


def test_the_version_of_ray() -> None:
    assert f"\nray=={RAY_VERSION}\n" in (ROOT / "constraints.txt").read_text()


def test_the_command_imports_no_heavy_libraries(tmp_path: Path) -> None:
    """`tailor manifest` works without torch and Ray."""
    heavy = ("torch", "ray", "transformers", "numpy", "pyarrow", "fsspec", "datasets")
    recipe, cluster = ROOT / "recipes" / "cluster-lora.yaml", ROOT / "cluster" / "gpu.yaml"
    code = (
        "import sys; from tailor.cli.main import main\n"
        f"assert main(['manifest', {str(recipe)!r}, '--cluster', {str(cluster)!r}]) == 0\n"
        f"print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
