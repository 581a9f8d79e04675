"""The tokenizer beside an artifact gives the token ids of training, here and in plain transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tailor.encode.template import load_template
from tailor.encode.tokenizer import load_tokenizer
from tailor.encode.tokenizer_files import PLAIN, Original, fix_tokenizer_class, own_files
from tailor.errors import ModelError
from tailor.spec.model import Model
from tests.helpers.models import byte_tokenizer
from tests.helpers.tokenizers import split_tokenizer

TEXTS = ("1234 x", "12,345 and 6789", "WE'LL go\n\n\nnow   there", "a  b\t\tc", "日本<s>の海<|im_end|>")


def plain_ids(folder: Path) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]


def own_ids(folder: Path) -> list[list[int]]:
    tokenizer = load_tokenizer(str(folder))
    return [tokenizer.encode(text) for text in TEXTS]


def written(folder: Path, out: Path, *, whole: bool = True, template: dict[str, Any] | None = None) -> Path:
    """The artifact's folder for the base in `folder`. whole: a model, which has a config.json."""
    out.mkdir()
    if whole:
        shutil.copy(folder / "config.json", out)
    Original.open(Model(path=str(folder)), trust_remote_code=False).write(out, template)
    return out


@pytest.mark.parametrize("whole", [True, False], ids=["model", "adapter"])
@pytest.mark.parametrize(
    ("kind", "rebuilt"),
    [("GPT2Tokenizer", True), ("GPTNeoXTokenizerFast", True), ("Qwen2Tokenizer", False), (PLAIN, False)],
)
def test_ids_are_those_of_training(tmp_path: Path, kind: str, rebuilt: bool, whole: bool) -> None:
    folder = split_tokenizer(tmp_path / "base", kind=kind)
    made = written(folder, tmp_path / "made", whole=whole)
    assert (made / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert own_ids(made) == own_ids(folder)
    assert fix_tokenizer_class(made) is None
    assert plain_ids(made) == own_ids(folder)
    if rebuilt:
        assert plain_ids(folder) != own_ids(folder), "the control: transformers rebuilds this class"
        assert json.loads((made / "tokenizer_config.json").read_text())["tokenizer_class"] == PLAIN


def test_control_what_transformers_saves_is_another_tokenizer(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = split_tokenizer(tmp_path / "base", kind="GPT2Tokenizer")
    AutoTokenizer.from_pretrained(str(folder)).save_pretrained(tmp_path / "saved")
    assert own_ids(tmp_path / "saved") != own_ids(folder)


def test_a_class_required_by_the_model_type_gives_a_warning(tmp_path: Path) -> None:
    folder = split_tokenizer(tmp_path / "base", kind="Qwen2Tokenizer", model="qwen2")
    made = written(folder, tmp_path / "made")
    content = json.loads((made / "tokenizer.json").read_text())
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\d+|\D"
    (made / "tokenizer.json").write_text(json.dumps(content))
    warning = fix_tokenizer_class(made)
    assert warning is not None
    assert "does not give the token ids of training" in warning
    assert f"{PLAIN}.from_pretrained" in warning
    assert "other ids for '1234 and 12,345.67 in 2024'" in warning
    from transformers import PreTrainedTokenizerFast

    advised = PreTrainedTokenizerFast.from_pretrained(str(made))
    assert [advised(text, add_special_tokens=False)["input_ids"] for text in TEXTS] == own_ids(made)


def test_settings_that_only_the_configuration_has_are_kept(tmp_path: Path) -> None:
    """Tokens that the file lacks, with their ids, and the end that a class has by default."""
    extra = {"1900": {"content": "<|more|>", "special": True}}
    named = {"pad_token": "<|zz|>", "mask_token": "<|aa|>", "eos_token": None, "bos_token": None}
    folder = split_tokenizer(tmp_path / "base", added_tokens_decoder=extra, **named)
    made = written(folder, tmp_path / "made")
    text = "<|more|><|zz|><|aa|>"
    ids = load_tokenizer(str(folder)).encode(text)
    assert ids == [ids[0], ids[0] + 1, ids[0] + 2]
    assert load_tokenizer(str(made)).encode(text) == ids

    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<|im_start|>", "<|endoftext|>"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "GPT2Tokenizer"}))
    assert load_tokenizer(str(folder)).eos_id is None, "the control: no file names it"
    made = written(folder, tmp_path / "gpt")
    end = load_tokenizer(str(made)).encode("<|endoftext|>")
    assert json.loads((made / "generation_config.json").read_text())["eos_token_id"] == end


def test_a_custom_class_is_reported_at_once(tmp_path: Path) -> None:
    folder = byte_tokenizer(tmp_path / "base")
    path = folder / "tokenizer_config.json"
    own = {
        "tokenizer_class": "OwnTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]},
    }
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    load_tokenizer(str(folder))  # the control: its rows could be prepared
    with pytest.raises(ModelError, match="transformers cannot open its tokenizer") as caught:
        Original.open(Model(path=str(folder)), trust_remote_code=False)
    assert "set model.trust_remote_code: true" in str(caught.value.hint)


def test_custom_code_is_not_needed_afterwards(tmp_path: Path) -> None:
    folder = byte_tokenizer(tmp_path / "base")
    code = "from transformers import PreTrainedTokenizerFast\n\n\nclass OwnTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    (folder / "tokenization_own.py").write_text(f"# {folder}\n{code}")
    path = folder / "tokenizer_config.json"
    own = {
        "tokenizer_class": "OwnTokenizer",
        "auto_map": {"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]},
    }
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    made = tmp_path / "made"
    made.mkdir()
    Original.open(Model(path=str(folder)), trust_remote_code=True).write(made, None)
    assert fix_tokenizer_class(made) is None
    assert plain_ids(made) == own_ids(folder)


@pytest.mark.parametrize("tool_use", ["TOOLS {{ tools | length }}", None])
def test_templates_are_written_as_they_are_read(tmp_path: Path, tool_use: str | None) -> None:
    folder = byte_tokenizer(tmp_path / "base")
    stored = {
        "name": "model",
        "text": "{{ messages[0].content }}\r\n",
        "tool_use": tool_use,
        "end_of_turn_ids": [4, 2],
    }
    made = written(folder, tmp_path / "made", whole=False, template=stored)
    found = load_tokenizer(str(made)).template
    assert found is not None
    assert (found.text, found.tool_use) == (stored["text"], tool_use)
    assert json.loads((made / "generation_config.json").read_text())["eos_token_id"] == [2, 4]
    from transformers import AutoTokenizer

    known = AutoTokenizer.from_pretrained(str(made))
    question = [{"role": "user", "content": "Q"}]
    look = {"type": "function", "function": {"name": "look", "parameters": {}}}
    assert known.apply_chat_template(question, tokenize=False).strip() == "Q"
    rendered = known.apply_chat_template(question, tools=[look], tokenize=False)
    assert rendered.strip() == ("Q" if tool_use is None else "TOOLS 1")


def test_two_template_files_are_read_as_transformers_writes_them(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = byte_tokenizer(tmp_path / "base", chat_template=None)
    known = AutoTokenizer.from_pretrained(str(folder))
    known.chat_template = {"default": "D", "tool_use": "T"}
    known.save_pretrained(tmp_path / "saved")
    found = load_tokenizer(str(tmp_path / "saved")).template
    assert found is not None
    assert (found.text, found.tool_use) == ("D", "T")


def test_no_template_keeps_the_bases(tmp_path: Path) -> None:
    folder = byte_tokenizer(tmp_path / "base", chat_template=load_template("chatml").text)
    made = written(folder, tmp_path / "made", whole=False)
    assert load_tokenizer(str(made)).template == load_tokenizer(str(folder)).template
    assert "chat_template.jinja" in own_files(made)
    assert own_files(tmp_path) == ()
