"""The source: no call of a library leaves it to that library, or to a prompt, whether code runs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tailor

FOLDER = Path(tailor.__file__).parent
LOADERS = ("from_pretrained", "from_config")
CANNOT = (
    "GenerationConfig",
    "PeftConfig",
    "PeftModel",
    "ModelFacts",
    "AutoHfQuantizer",
    "BitsAndBytesConfig",
)
"""Classes whose loaders run no code of a folder, and take no `trust_remote_code`."""


def odd_calls(text: str) -> Iterator[str]:
    """Calls that load a model or a pickle without saying what may run."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner, name = ast.unparse(node.func.value), node.func.attr
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        if name in LOADERS and owner not in CANNOT and not owner.startswith("cls"):
            if "trust_remote_code" not in given and None not in given:
                yield ast.unparse(node)
            for value in (given.get("trust_remote_code"),):
                if isinstance(value, ast.Constant) and value.value is not False:
                    yield ast.unparse(node)
        if (owner, name) == ("torch", "load") and ast.unparse(
            given.get("weights_only", ast.Constant(0))
        ) != "True":
            yield ast.unparse(node)
        if (
            (owner, name) == ("np", "load")
            and "allow_pickle" in given
            and ast.unparse(given["allow_pickle"]) != "False"
        ):
            yield ast.unparse(node)
        if name == "SentenceTransformer" and "trust_remote_code" not in given:
            yield ast.unparse(node)


def test_every_call_says_what_may_run() -> None:
    found = [
        f"{path.relative_to(FOLDER)}: {call}"
        for path in sorted(FOLDER.rglob("*.py"))
        for call in odd_calls(path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    "call",
    [
        "AutoTokenizer.from_pretrained(path)",
        "AutoModel.from_config(config)",
        "AutoProcessor.from_pretrained(path, trust_remote_code=True)",
        "AutoConfig.from_pretrained(path, trust_remote_code=None)",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "np.load(file, allow_pickle=True)",
        "package.SentenceTransformer(folder)",
    ],
)
def test_control_such_a_call_is_found(call: str) -> None:
    assert list(odd_calls(call)) == [call]


def test_unpickling_stays_between_the_processes_of_a_run() -> None:
    """`pickle.loads` reads what tailor's own Ray workers send. No file is unpickled."""
    users = [
        str(path.relative_to(FOLDER))
        for path in sorted(FOLDER.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and ast.unparse(node) in ("pickle.load", "pickle.loads", "pickle.Unpickler")
    ]
    assert set(users) == {"onray/prepare.py"}
