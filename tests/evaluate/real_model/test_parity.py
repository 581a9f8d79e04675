"""`tailor evaluate` on a real instruct model, against loops in plain transformers and lm-eval's own evaluation.

The loops take one row at a time, without padding. All compute in float32. TAILOR_REAL_MODEL is the folder of a model with the
ChatML template, such as SmolLM2-135M-Instruct. docs/evaluation.md has the figures.
"""

from __future__ import annotations

import json
import math
import os
import re
import string
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch

from tailor.cli.main import main
from tailor.spec.tasks.registry import task_class
from tests.evaluate.real_model.rows import ASKED, CHOICES, TALKS, TEXTS
from tests.helpers.evaluations import write_rows

REAL = os.environ.get("TAILOR_REAL_MODEL")
pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(900),
    pytest.mark.skipif(REAL is None, reason="TAILOR_REAL_MODEL names no model folder"),
]
NEW_TOKENS = 12
SAME = 2e-5
"""Largest relative difference of two log-likelihoods: padding and batches change the order of float32 sums."""


@dataclass(frozen=True)
class Reference:
    """The model by plain transformers, in float32."""

    folder: Path
    model: Any
    tokenizer: Any

    @torch.no_grad()
    def losses(self, ids: list[int]) -> tuple[list[float], list[bool]]:
        """Of each token but the first: its negative log-likelihood in nats, and whether it is the most probable one."""
        logits = self.model(torch.tensor([ids])).logits[0, :-1].double()
        targets = torch.tensor(ids[1:])
        found = -logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
        return found.tolist(), (logits.argmax(-1) == targets).tolist()

    def ids(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def chat(self, messages: list[dict[str, str]], *, ask: bool) -> str:
        found: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
        return found

    def loglikelihood(self, context: str, continuation: str) -> float:
        """Of the tokens after those of the context."""
        whole, start = self.ids(context + continuation), len(self.ids(context))
        return -sum(self.losses(whole)[0][start - 1 :])

    @torch.no_grad()
    def answer(self, prompt: str) -> str:
        """By greedy decoding, one forward pass per token."""
        given, answer, cache = self.ids(prompt), [], None
        for _ in range(NEW_TOKENS):
            out = self.model(torch.tensor([given]), past_key_values=cache, use_cache=True)
            token, cache = int(out.logits[0, -1].argmax()), out.past_key_values
            if token == self.tokenizer.eos_token_id:
                break
            answer.append(token)
            given = [token]
        text: str = self.tokenizer.decode(answer)
        return text


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """The model, of which config.json says float32: models are evaluated in the dtype that it names."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return _reference(tmp_path_factory, AutoModelForCausalLM, AutoTokenizer)


def _reference(factory: pytest.TempPathFactory, model: Any, tokenizer: Any) -> Reference:
    folder = factory.mktemp("real") / "chat"
    folder.mkdir()
    for path in Path(str(REAL)).iterdir():
        (folder / path.name).symlink_to(path.absolute())
    config = json.loads((folder / "config.json").read_text())
    config.pop("torch_dtype", None)
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    loaded = model.from_pretrained(folder, dtype=torch.float32).eval()
    return Reference(folder, loaded, tokenizer.from_pretrained(folder))


@pytest.fixture(scope="module")
def plain(real: Reference) -> Path:
    """The same model without a chat template, which is asked in plain text."""
    folder = real.folder.parent / "plain"
    folder.mkdir()
    for path in real.folder.iterdir():
        if path.name != "chat_template.jinja":
            (folder / path.name).symlink_to(path)
    config = json.loads((real.folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


Evaluate = Callable[..., tuple[dict[str, float], Path]]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Evaluate:
    """By the command, once for the same arguments: the figures, and the folder with the results."""
    made: dict[str, tuple[dict[str, float], Path]] = {}

    def run(model: Path, rows: list[dict[str, Any]], *tasks: dict[str, Any]) -> tuple[dict[str, float], Path]:
        key = json.dumps([str(model), rows, tasks])
        if key in made:
            return made[key]
        place = tmp_path_factory.mktemp("evaluated")
        file = str(write_rows(place / "rows.jsonl", rows))
        suite: dict[str, Any] = {"limit": None, "compare": "none", "tasks": list(tasks)}
        if task_class(tasks[0]["name"]).on_rows:
            suite["data"] = {"evaluation": [{"path": file}], "max_length": 512}
        else:
            suite["tasks"] = [{**task, "data": {"path": file}} for task in tasks]
            del suite["limit"]
        if task_class(tasks[0]["name"]).generates:
            suite["decoding"] = {"max_new_tokens": NEW_TOKENS, "batch_size": 8}
        (place / "suite.yaml").write_text(json.dumps(suite))
        words = ["evaluate", str(model), "--with", str(place / "suite.yaml"), "--to", str(place / "results")]
        assert main(words) == 0
        results = json.loads((place / "results" / "results.json").read_text())
        values = {one["figure"]: next(iter(one["models"].values()))["value"] for one in results["figures"]}
        made[key] = values, place / "results"
        return made[key]

    return run


def answers_of(folder: Path, file: str) -> list[dict[str, Any]]:
    """What the model did, row by row."""
    rows = [json.loads(line) for line in (folder / file).read_text().splitlines()]
    return [next(iter(row["models"].values())) for row in rows]


@pytest.fixture(scope="module")
def lm_eval(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs one task of lm-eval by its own evaluator and its own model class. Returns its metrics and samples."""
    package = pytest.importorskip(
        "lm_eval", reason="lm-eval is not installed: pip install -c constraints.txt -e '.[lm-eval]'"
    )
    import datasets
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    place = tmp_path_factory.mktemp("lm_eval")
    models: dict[Path, Any] = {}

    def run(model: Path, rows: list[dict[str, Any]], *, chat: bool = False, **task: Any) -> Any:
        folder = place / str(len(list(place.iterdir())))
        folder.mkdir()
        file = write_rows(folder / "rows.jsonl", rows)
        settings = {
            "task": "own",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(file)}},
            "test_split": "test",
            **task,
        }
        (folder / "own.yaml").write_text(json.dumps(settings))
        if model not in models:
            models[model] = HFLM(str(model), dtype="float32", device="cpu", batch_size=1)
        found = package.simple_evaluate(
            models[model],
            tasks=["own"],
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            bootstrap_iters=0,
            apply_chat_template=chat,
        )
        return found["results"]["own"], sorted(found["samples"]["own"], key=lambda one: one["doc_id"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", place)
        yield run


def flat(rows: list[list[float]]) -> list[float]:
    return [value for row in rows for value in row]


def close(one: list[float], other: list[float], within: float = SAME) -> bool:
    assert len(one) == len(other)
    return all(abs(a - b) <= within * max(abs(a), abs(b)) for a, b in zip(one, other, strict=True))


# Perplexity ---------------------------------------------------------------------------------------------------------


def test_perplexity_of_texts(real: Reference, evaluated: Evaluate) -> None:
    """A text is scored from its second token to the EOS: this tokenizer has no BOS."""
    values, folder = evaluated(real.folder, [{"text": text} for text in TEXTS], {"name": "perplexity"})
    found = [real.losses([*real.ids(text), real.tokenizer.eos_token_id]) for text in TEXTS]
    _compare_perplexity(values, folder, found)


def _compare_perplexity(
    values: dict[str, float], folder: Path, found: list[tuple[list[float], list[bool]]]
) -> None:
    own = answers_of(folder, "passages.jsonl")
    sums = [sum(losses) for losses, _ in found]
    tokens = sum(len(losses) for losses, _ in found)
    assert close([row["loss"] for row in own], sums)
    assert [row["tokens"] for row in own] == [len(losses) for losses, _ in found]
    assert close([values["loss"]], [sum(sums) / tokens])
    assert close([values["perplexity"]], [math.exp(sum(sums) / tokens)], 1e-4)
    assert values["token_accuracy"] == sum(sum(hits) for _, hits in found) / tokens
    mean_of_rows = mean(sum(losses) / len(losses) for losses, _ in found)
    assert not close([values["loss"]], [mean_of_rows], 1e-2), "control: not the mean of the rows' means"
    print(f"perplexity {values['perplexity']:.6f}, by the loop {math.exp(sum(sums) / tokens):.6f}")


def test_perplexity_of_conversations(real: Reference, evaluated: Evaluate) -> None:
    """Every answer is scored, with the token that ends it and without what the template writes after it."""
    values, folder = evaluated(real.folder, TALKS, {"name": "perplexity"})
    found = []
    for talk in TALKS:
        text = real.chat(talk["messages"], ask=False)
        spans = [
            one.span(1) for one in re.finditer(r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)", text, re.S)
        ]
        assert len(spans) == sum(turn["role"] == "assistant" for turn in talk["messages"])
        encoded = real.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        losses, hits = real.losses(encoded["input_ids"])
        offsets = encoded["offset_mapping"][1:]
        inside = [any(start <= at < stop for start, stop in spans) for at, _ in offsets]
        picked = [(a, b) for a, b, scored in zip(losses, hits, inside, strict=True) if scored]
        found.append(([a for a, _ in picked], [b for _, b in picked]))
    _compare_perplexity(values, folder, found)


def test_perplexity_and_lm_eval(real: Reference, plain: Path, lm_eval: Any, evaluated: Evaluate) -> None:
    """lm-eval scores a text after a BOS and without an EOS. With the BOS in the text and less the EOS, both are equal."""
    task = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}
    metrics = [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}, {"metric": "bits_per_byte"}]
    rows = [{"text": text} for text in TEXTS]
    reported, samples = lm_eval(plain, rows, metric_list=metrics, **task)
    theirs = [-sample["filtered_resps"][0] for sample in samples]
    bos, eos = real.tokenizer.bos_token, real.tokenizer.eos_token_id
    ends = [real.losses([*real.ids(bos + text), eos])[0][-1] for text in TEXTS]
    _, folder = evaluated(plain, [{"text": bos + text} for text in TEXTS], {"name": "perplexity"})
    ours = [row["loss"] - end for row, end in zip(answers_of(folder, "passages.jsonl"), ends, strict=True)]
    assert close(ours, theirs)
    size = sum(len(text.encode()) for text in TEXTS)
    assert close([reported["bits_per_byte,none"]], [sum(ours) / size / math.log(2)])
    without = [sum(real.losses(real.ids(text))[0]) for text in TEXTS]
    assert not close(without, theirs, 1e-2), "control: the BOS counts"
    print(f"bits per byte {sum(ours) / size / math.log(2):.6f}, lm-eval {reported['bits_per_byte,none']:.6f}")


# Multiple choice ----------------------------------------------------------------------------------------------------


def choice_figures(likelihoods: list[list[float]]) -> dict[str, float]:
    """accuracy and accuracy_norm."""
    right = {"accuracy": [], "accuracy_norm": []}  # type: dict[str, list[bool]]
    for row, own in zip(CHOICES, likelihoods, strict=True):
        lengths = [len(text) for text in row["choices"]]
        best = max(range(len(own)), key=own.__getitem__)
        best_norm = max(range(len(own)), key=lambda at: own[at] / lengths[at])
        right["accuracy"].append(best == row["answer"])
        right["accuracy_norm"].append(best_norm == row["answer"])
    return {name: mean(map(float, values)) for name, values in right.items()}


@pytest.mark.parametrize("kind", ["plain", "chat"])
def test_multiple_choice(kind: str, real: Reference, plain: Path, evaluated: Evaluate) -> None:
    """Plain: question, a space and the choice. Chat: the choice is the answer, without the token that ends it."""
    values, folder = evaluated(
        plain if kind == "plain" else real.folder, CHOICES, {"name": "multiple_choice"}
    )
    expected = []
    for row in CHOICES:
        chat = real.chat([{"role": "user", "content": row["question"]}], ask=True)
        context, space = (row["question"], " ") if kind == "plain" else (chat, "")
        expected.append([real.loglikelihood(context, space + text) for text in row["choices"]])
    ours = [row["loglikelihoods"] for row in answers_of(folder, "choices.jsonl")]
    assert close(flat(ours), flat(expected))
    assert values == choice_figures(expected)
    assert 0 < values["accuracy"] < 1, "control: the model neither knows all nor nothing"
    assert values["accuracy"] != values["accuracy_norm"] or kind == "chat", "control: the length counts"
    print(f"{kind}: {values}")


CHOICE_TASK = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}


@pytest.mark.parametrize("kind", ["plain", "chat"])
def test_multiple_choice_and_lm_eval(
    kind: str, real: Reference, plain: Path, lm_eval: Any, evaluated: Evaluate
) -> None:
    """Plain: equal. Chat: lm-eval moves the line break that ends the prompt to the choices, so their sums have it too."""
    model = plain if kind == "plain" else real.folder
    values, folder = evaluated(model, CHOICES, {"name": "multiple_choice"})
    reported, samples = lm_eval(model, CHOICES, chat=kind == "chat", **CHOICE_TASK)
    ours = [row["loglikelihoods"] for row in answers_of(folder, "choices.jsonl")]
    theirs = [[answer[0] for answer in sample["filtered_resps"]] for sample in samples]
    if kind == "plain":
        assert close(flat(ours), flat(theirs))
        assert values["accuracy_norm"] == reported["acc_norm,none"]
    else:
        for row, own, their in zip(CHOICES, ours, theirs, strict=True):
            chat = real.chat([{"role": "user", "content": row["question"]}], ask=True)
            moved = real.loglikelihood(chat.rstrip(), chat[len(chat.rstrip()) :])
            assert moved < 0
            assert close([value + moved for value in own], their)
    assert values["accuracy"] == reported["acc,none"]
    print(f"{kind}: {values}, lm-eval {reported['acc,none']} and {reported['acc_norm,none']}")


# Answers ------------------------------------------------------------------------------------------------------------


def squad_words(text: str) -> list[str]:
    """As in SQuAD's script."""
    text = "".join(char for char in text.lower() if char not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def squad_f1(answer: str, reference: str) -> float:
    given, expected = squad_words(answer), squad_words(reference)
    same = sum((Counter(given) & Counter(expected)).values())
    return 2 * same / (len(given) + len(expected)) if given and expected else float(given == expected)


NORMALIZED = {"name": "exact_match", "normalize": True}


def prompts_of(kind: str, real: Reference) -> list[tuple[str, str]]:
    """(prompt, reference) of each row."""
    if kind == "plain":
        return [(row["prompt"], row["response"]) for row in ASKED["plain"]]
    turns = [row["messages"] for row in ASKED["chat"]]
    return [(real.chat(one[:-1], ask=True), one[-1]["content"]) for one in turns]


@pytest.mark.parametrize("kind", ["plain", "chat"])
def test_answers(kind: str, real: Reference, evaluated: Evaluate) -> None:
    values, folder = evaluated(real.folder, ASKED[kind], {"name": "f1"}, NORMALIZED)
    answers = [real.answer(prompt).strip() for prompt, _ in prompts_of(kind, real)]
    assert [row["answer"] for row in answers_of(folder, "answers.jsonl")] == answers
    pairs = [(answer, right) for answer, (_, right) in zip(answers, prompts_of(kind, real), strict=True)]
    assert values["exact_match"] == mean(float(squad_words(a) == squad_words(b)) for a, b in pairs)
    assert values["f1"] == pytest.approx(mean(squad_f1(*pair) for pair in pairs), rel=1e-12)
    assert 0 < values["f1"] < 1, "control"
    assert kind == "plain" or 0 < values["exact_match"] < 1, "control"
    print(kind, values, answers)


@pytest.mark.parametrize("kind", ["plain", "chat"])
def test_answers_and_lm_eval(
    kind: str, real: Reference, plain: Path, lm_eval: Any, evaluated: Evaluate
) -> None:
    """The same answers, but lm-eval keeps white space around them. Its options are those of `normalize` but the articles."""
    values, folder = evaluated(real.folder, ASKED[kind], {"name": "f1"}, NORMALIZED)
    prompt = "{{prompt}}" if kind == "plain" else "{{messages[0].content}}"
    right = "{{response}}" if kind == "plain" else "{{messages[1].content}}"
    until = {"until": [real.tokenizer.eos_token], "max_gen_toks": NEW_TOKENS, "do_sample": False}
    ignored = {"ignore_case": True, "ignore_punctuation": True}
    reported, samples = lm_eval(
        real.folder if kind == "chat" else plain,
        ASKED[kind],
        chat=kind == "chat",
        output_type="generate_until",
        doc_to_text=prompt,
        doc_to_target=right,
        generation_kwargs=until,
        metric_list=[{"metric": "exact_match", **ignored}],
    )
    ours = [row["answer"] for row in answers_of(folder, "answers.jsonl")]
    theirs = [sample["filtered_resps"][0] for sample in samples]
    assert ours == [text.strip() for text in theirs]
    assert (ours == theirs) == (kind == "chat"), "control: an answer to plain text begins with a space"
    assert values["exact_match"] == pytest.approx(reported["exact_match,none"], rel=1e-12)
    print(kind, values, reported)
