"""Modelfiles: what Ollama reads of a line is the value that was meant, or the line is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tailor.encode.tokenizer import Tokenizer, load_tokenizer
from tailor.errors import ModelError
from tailor.export import modelfile
from tests.helpers.models import byte_tokenizer

VALUES = {
    "</s>": 'PARAMETER stop "</s>"',
    'say "x"': 'PARAMETER stop """say "x""""',
    '"': 'PARAMETER stop """""""',
    '""': 'PARAMETER stop """"""""',
    "a\nb": 'PARAMETER stop """a\nb"""',
    '"\nFROM /etc': 'PARAMETER stop """"\nFROM /etc"""',
    "back\\n": 'PARAMETER stop "back\\n"',
    " spaces ": 'PARAMETER stop " spaces "',
    "停": 'PARAMETER stop "停"',
    "": 'PARAMETER stop ""',
}


@pytest.mark.parametrize("value", VALUES)
def test_a_value_is_read_back(value: str) -> None:
    assert modelfile.line("PARAMETER stop", value) == VALUES[value]


@pytest.mark.parametrize("value", ['x"""\nADAPTER /tmp/x', '"""\n"""\n', 'a"""  \r\nb"\n'])
def test_a_value_that_would_end_early_is_refused(value: str) -> None:
    with pytest.raises(ModelError, match="a Modelfile cannot hold the value of TEMPLATE"):
        modelfile.line("TEMPLATE", value)
    assert modelfile.line("TEMPLATE", value.replace('"""', "")), "the control"


def test_a_path() -> None:
    assert modelfile.line("FROM", "/a path/to # it") == "FROM /a path/to # it"
    assert modelfile.line("FROM", "/a\nSYSTEM x") == 'FROM """/a\nSYSTEM x"""'


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(str(byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))))


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": "1\nADAPTER /x"},
        {"top_k": 1.5},
        {"top_p": float("nan")},
        {"repetition_penalty": [1]},
        {"temperature": True},
    ],
)
def test_settings_that_are_no_numbers_are_refused(tokenizer: Tokenizer, settings: dict[str, Any]) -> None:
    (key,) = settings
    with pytest.raises(ModelError, match=f"generation_config.json: {key} is "):
        modelfile.parameters(tokenizer, settings, 2048)


def test_parameters(tokenizer: Tokenizer) -> None:
    settings = {"temperature": 0.5, "top_k": 20, "eos_token_id": [tokenizer.eos_id]}
    assert modelfile.parameters(tokenizer, settings, 2048) == [
        'PARAMETER stop "</s>"',
        "PARAMETER num_ctx 2048",
        "PARAMETER temperature 0.5",
        "PARAMETER top_k 20",
        "PARAMETER repeat_penalty 1",
    ]
