"""The tokenizer of a model folder gives the ids that transformers gives, without torch."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from tailor.encode.model_files import load_config
from tailor.encode.template import builtin_templates, load_template
from tailor.encode.tokenizer import load_tokenizer
from tailor.errors import ModelError, StoreError, TemplateError
from tailor.store import Store
from tests.helpers.tokenizers import bpe_tokenizer, sentencepiece_tokenizer

TEXTS = [
    "Hello, the weather.",
    "  two spaces",
    "naïve 日本 🙂",
    "<|im_start|>user\nHi<|im_end|>\n",
    "<s>a</s> b",
    "",
]


def configured(folder: Path, **config: object) -> Path:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


@pytest.mark.parametrize("kind", ["bpe", "gpt2", "sentencepiece", "stripping"])
def test_ids_of_transformers(tokenizer_folders, kind):
    from transformers import PreTrainedTokenizerFast

    ours = load_tokenizer(str(tokenizer_folders[kind]))
    theirs = PreTrainedTokenizerFast.from_pretrained(str(tokenizer_folders[kind]))
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
        assert ours.encode_prompt(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(
            ours.encode(text), clean_up_tokenization_spaces=False
        )
    assert [ids.tolist() for ids in ours.encode_batch(TEXTS)] == [ours.encode(text) for text in TEXTS]
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (
        theirs.bos_token_id,
        theirs.eos_token_id,
        theirs.pad_token_id,
    )
    assert ours.vocab_size == len(theirs)


def test_tokens_that_only_the_configuration_names(tmp_path):
    from transformers import PreTrainedTokenizerFast

    config = {
        "pad_token": "<pad>",
        "eos_token": {"content": "<|end|>", "__type": "AddedToken"},
        "additional_special_tokens": ["<x>", "<s>"],
        "added_tokens_decoder": {"900": {"content": "<y>", "special": False, "normalized": False}},
    }
    folder = configured(bpe_tokenizer(tmp_path, tags=()), **config)
    ours, theirs = load_tokenizer(str(folder)), PreTrainedTokenizerFast.from_pretrained(str(folder))
    text = "a<pad>b<|end|>c<x>d<y>"
    assert [ours.token(token) for token in ours.encode(text)] == [
        "a",
        "<pad>",
        "b",
        "<|end|>",
        "c",
        "<x>",
        "d",
        "<y>",
    ]
    assert set(theirs.tokenize(text)) == {"a", "<pad>", "b", "<|end|>", "c", "<x>", "d", "<y>"}
    assert ours.specials["eos_token"] == "<|end|>"
    assert ours.vocab_size == len(theirs)


@pytest.mark.parametrize("adds", [True, False])
def test_the_file_decides_on_bos_whatever_the_configuration_says(tmp_path, adds):
    from transformers import PreTrainedTokenizerFast

    folder = configured(bpe_tokenizer(tmp_path, bos=not adds), add_bos_token=adds)
    ours, theirs = load_tokenizer(str(folder)), PreTrainedTokenizerFast.from_pretrained(str(folder))
    assert ours.encode_prompt("a") == theirs.encode("a")
    assert bool(ours.prefix) is not adds


def test_truncation_and_padding_of_the_file_are_off(tmp_path):
    folder = bpe_tokenizer(tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 20}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "<s>"
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert (
        load_tokenizer(str(folder)).decode(load_tokenizer(str(folder)).encode("a b c d e f")) == "a b c d e f"
    )


@pytest.mark.parametrize("make", [bpe_tokenizer, sentencepiece_tokenizer])
def test_a_continuation_begins_without_a_space_of_its_own(make, tmp_path):
    tokenizer = load_tokenizer(str(make(tmp_path)))
    prompt = tokenizer.encode("The weather")
    for text in ("s are", " is", "\nx", ""):
        (rest,) = tokenizer.encode_batch([text], continues=True)
        assert tokenizer.decode(prompt + rest.tolist()) == "The weather" + text
    assert tokenizer.adds_space is (make is sentencepiece_tokenizer)
    # The control: encoded as a text of its own, a SentencePiece tokenizer puts a space between.
    alone = tokenizer.decode(prompt + tokenizer.encode("s are"))
    assert alone == ("The weather s are" if tokenizer.adds_space else "The weathers are")


def test_pickles_and_fingerprints_by_content(tmp_path):
    folder = bpe_tokenizer(tmp_path / "a", chat_template="{{ messages }}")
    tokenizer = load_tokenizer(str(folder))
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
    assert (again.fingerprint, again.template) == (tokenizer.fingerprint, tokenizer.template)
    same = load_tokenizer(str(bpe_tokenizer(tmp_path / "b")))
    assert same.fingerprint == tokenizer.fingerprint
    changes = [{"eos_token": "<s>"}, {"unk_token": "a"}, {"pad_token": "<new>"}]
    prints = {
        load_tokenizer(str(configured(bpe_tokenizer(tmp_path / str(n)), **change))).fingerprint
        for n, change in enumerate(changes)
    }
    assert len(prints | {tokenizer.fingerprint}) == 4


def test_templates(tmp_path, monkeypatch):
    folder = bpe_tokenizer(tmp_path / "m")
    assert load_tokenizer(str(folder)).template is None
    with pytest.raises(TemplateError, match="has no chat template"):
        load_tokenizer(str(folder)).render([])
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    tokenizer = load_tokenizer(str(configured(folder, chat_template=named)))
    assert tokenizer.render([{"role": "user", "content": "x"}]) == "D"
    assert tokenizer.render([{"role": "user", "content": "x"}], tools=[{"function": {}}]) == "T"
    # A file of its own wins over the configuration, and the recipe's choice over both.
    (folder / "chat_template.jinja").write_text("{{ bos_token }}F")
    assert load_tokenizer(str(folder)).render([{"role": "user", "content": "x"}]) == "<s>F"
    (tmp_path / "own.jinja").write_text("{{ raise_exception('not that') }}")
    chosen = load_tokenizer(str(folder), template=str(tmp_path / "own.jinja"))
    assert chosen.template is not None
    assert chosen.template.name == "own.jinja"
    with pytest.raises(TemplateError, match="the chat template rejects the conversation: not that"):
        chosen.render([{"role": "user", "content": "x"}])
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(TemplateError, match="several chat templates"):
        load_tokenizer(str(configured(folder, chat_template={"a": "A", "b": "B"})))


def test_builtin_templates_have_descriptions_and_markers():
    described = builtin_templates()
    assert {"alpaca", "chatml", "gemma", "llama-2", "llama-3", "mistral", "vicuna", "zephyr"} <= set(
        described
    )
    assert all(len(text) > 20 for text in described.values())
    # Qwen 3's rewrites earlier turns, which markers cannot tell.
    assert {name for name in described if not load_template(name).has_markers} == {
        "gpt-oss",
        "qwen-3",
    }


def test_paths_urls_and_hub_ids(tmp_path, monkeypatch):
    folder = bpe_tokenizer(tmp_path / "m", chat_template="C")
    remote = Store("memory://tokenizer/m")
    for path in folder.iterdir():
        remote.put_file(path, path.name)
    assert load_tokenizer(remote.url).fingerprint == load_tokenizer(str(folder)).fingerprint
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for path, problem in (
        ("nobody/nothing", "is not a local folder, its tokenizer.json is not in the cache"),
        ("a/b/c", "is neither a local folder nor a valid Hub id"),
        ("memory://nothing/here", "does not exist"),
    ):
        with pytest.raises(ModelError, match=f"model.path: {path} {problem}"):
            load_tokenizer(path)
    with pytest.raises(ModelError, match=r"config\.json"):
        load_config(str(folder))
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"the tokenizer of .* cannot be read"):
        load_tokenizer(str(folder))
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(StoreError, match=r"tokenizer_config\.json is damaged: it is not valid JSON"):
        load_tokenizer(str(folder))


def test_encoding_imports_neither_torch_nor_ray(tokenizer_folders):
    code = (
        "import sys; from tailor.encode.tokenizer import load_tokenizer; from tailor.encode.turns import turn_rules;"
        "import tailor.encode.prepare, tailor.encode.preview;"
        f"turn_rules(load_tokenizer({str(tokenizer_folders['bpe'])!r}, template='chatml'));"
        "print([name for name in ('torch', 'ray') if name in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )


def test_a_hub_without_an_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The download of huggingface_hub would try six times, with pauses of 23 seconds together."""
    asked: list[str] = []

    def unreachable(url: str) -> None:
        asked.append(url)
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: pytest.fail("it is tried again"))
    with pytest.raises(ModelError, match="cannot be reached"):
        load_config("nobody/unreachable")
    assert len(asked) == 1


def test_the_offline_mode_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda _: pytest.fail("it is asked"))
    with pytest.raises(ModelError, match=r"config\.json is not in the cache, and HF_HUB_OFFLINE is set"):
        load_config("nobody/unreachable")
