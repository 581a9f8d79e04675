"""The registry of formats: what it says of the built-in ones, and a format of another package (docs/extending.md)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tailor.encode.formats import FORMATS, formats_of, get_format
from tailor.encode.prepare import Prepared, prepare
from tailor.errors import DataError, ExtensionError
from tailor.spec.data import FORMAT_KINDS, Data
from tailor.spec.methods.dpo import Dpo
from tailor.spec.methods.registry import METHODS
from tailor.spec.methods.sft import Sft
from tailor.spec.model import Model
from tests.docs.test_pages import ROOT, blocks
from tests.helpers.extensions import make_distribution
from tests.helpers.models import byte_tokenizer
from tests.spec.helpers import GOOD, write

PAGE = ROOT / "docs" / "extending.md"
(CODE,) = (text for _, text, _ in blocks(PAGE.read_text(), "python") if "FAQ = Format(" in text)
ROWS = [{"title": f"Which size {n}?", "answers": [f"{40 + n}.", "Ask us."]} for n in range(5)]
CHATS = [
    {
        "messages": [
            {"role": "user", "content": row["title"]},
            {"role": "assistant", "content": row["answers"][0]},
        ]
    }
    for row in ROWS
]


def distribution(folder: Path, code: str = CODE, entry: str = "faq_format:FAQ") -> Path:
    return make_distribution(
        folder / "faq", "faq-format", {"faq_format.py": code}, {"tailor.formats": {"faq": entry}}
    )


@pytest.fixture
def register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Installs the package, or another version of it, in this process."""

    def forget() -> None:
        FORMATS.__dict__.pop("_registered", None)
        sys.modules.pop("faq_format", None)

    def registered(code: str = CODE, entry: str = "faq_format:FAQ") -> None:
        forget()
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        monkeypatch.syspath_prepend(str(distribution(folder, code, entry)))

    yield registered
    forget()


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    byte_tokenizer(tmp_path / "model")

    def made(rows: list[dict[str, Any]] = ROWS, method: Any = None, **source: Any) -> Prepared:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = Data(train=[{"path": str(path), **source}])  # type: ignore[list-item]
        model = Model(path=str(tmp_path / "model"))
        return prepare(data, model, method or Sft(name="sft"), str(tmp_path / "tokens"))

    return made


def contents(prepared: Prepared) -> list[tuple[list[int], list[list[int]]]]:
    split = prepared.tokens.split("train")
    examples = map(split.example, range(len(split)))
    return [(example.input_ids.tolist(), example.spans.tolist()) for example in examples]


def test_the_kinds_in_the_spec_are_those_of_the_formats() -> None:
    """The recipe's rules know the kinds without loading a format."""
    assert list(FORMAT_KINDS) == list(FORMATS.builtin)
    assert {name: get_format(name).rows for name in FORMATS.builtin} == FORMAT_KINDS
    assert {kind for method in METHODS for kind in method.reads} == set(FORMAT_KINDS.values())


@pytest.mark.parametrize("source", [{"format": "faq"}, {}], ids=["named", "auto"])
def test_a_format_of_another_package_is_read(register: Any, bench: Any, source: dict[str, str]) -> None:
    expected = contents(bench(CHATS))
    register()
    prepared = bench(ROWS, **source)
    assert contents(prepared) == expected
    report = prepared.tokens.manifest["report"]["sources"][0]
    assert (report["format"], report["format_guessed"], report["kept"]) == ("faq", not source, 5)


def test_without_the_package_auto_recognizes_nothing(bench: Any) -> None:
    """The control of the test above."""
    with pytest.raises(
        DataError, match="format: auto finds no format that fits: the rows have the keys title, answers"
    ):
        bench(ROWS)


def test_its_rows_must_be_of_a_kind_that_the_method_reads(register: Any, bench: Any) -> None:
    register()
    with pytest.raises(DataError) as caught:
        bench(method=Dpo(name="dpo"), format="faq")
    assert str(caught.value).endswith(
        "rows.jsonl: format faq has rows of the kind `examples`, but method dpo reads `pairs`; set format to one of "
        "preference, preference_text, preference_sharegpt, preference_alpaca, or use a method that reads `examples`"
    )
    with pytest.raises(DataError, match="the rows have the format faq, which method dpo does not read"):
        bench(method=Dpo(name="dpo"))
    assert formats_of(Sft.reads)[-1] == "faq"
    assert "faq" not in formats_of(Dpo.reads)


def test_its_rows_are_counted_when_they_cannot_be_read(register: Any, bench: Any) -> None:
    register()
    with pytest.raises(DataError, match=r"1 no_answer: .*rows.jsonl:6 the question has no answer"):
        bench([*ROWS, {"title": "Why?", "answers": []}], format="faq")


def test_tokens_are_prepared_again_when_its_code_changes(register: Any, bench: Any) -> None:
    register()
    first = bench(format="faq")
    register()
    assert bench(format="faq").reused, "the control: the same code again"
    register(CODE.replace("answers[0]", "answers[-1]"))
    second = bench(format="faq")
    assert not second.reused
    assert contents(second) != contents(first)


@pytest.mark.parametrize(
    ("code", "entry", "message"),
    [
        (CODE, "faq_format:EXAMPLES", "tailor.formats: faq is a str; the entry point must name a "),
        (CODE.replace('"faq"', '"other"'), "faq_format:FAQ", "faq is the format other; "),
        (CODE.replace("    EXAMPLES,", '    "sounds",'), "faq_format:FAQ", "rows of format faq must be one of examples, "),
    ],
)  # fmt: skip
def test_invalid_formats_are_rejected(register: Any, code: str, entry: str, message: str) -> None:
    register(code, entry)
    with pytest.raises(ExtensionError) as caught:
        get_format("faq")
    assert message in str(caught.value)


def test_a_recipe_may_name_it_where_the_package_is_installed(tmp_path: Path) -> None:
    recipe = write(tmp_path, GOOD.replace("path: hf://org/rows", "path: hf://org/rows, format: faq"))
    script = (
        "import sys\nfrom tailor.cli.main import main\ncode = main(['validate', sys.argv[1]])\n"
        "print('loaded', 'faq_format' in sys.modules or 'tailor.encode' in sys.modules)\nsys.exit(code)\n"
    )

    def validate(*path: Path) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT]))}
        command = [sys.executable, "-c", script, str(recipe)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    installed = validate(distribution(tmp_path))
    assert (installed.returncode, installed.stdout.splitlines()[-1]) == (0, "loaded False"), installed
    missing = validate()
    assert missing.returncode == 2
    assert f"{recipe}:3:41: data.train.0.format: faq is not one of auto, messages, " in missing.stderr
