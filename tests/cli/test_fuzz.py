"""Damaged recipes, evaluation files, cluster files and adapters give messages: never exit code 70, never seconds.

Commands run in this process, through the function that the console script calls.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import resource
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tailor.cli.main import INTERNAL_ERROR, main
from tests.cli.test_secrets import RECIPE as RUNNABLE
from tests.helpers.adapters import random_adapter
from tests.helpers.fuzzing import broken, damaged_bytes, override_words
from tests.helpers.models import tiny_llama
from tests.kube.test_broken import FULL as CLUSTER
from tests.spec.test_load import FULL as RECIPE

CASES = int(os.environ.get("SOAK", "0")) * 5000 or 100_000
"""Of the soak: 100 000 with its default of 20."""
MAX_SECONDS = 10.0
"""Of CPU time, for one command."""
MAX_BYTES = 500 << 20
EVALUATION = """\
name: x
tasks:
  - {name: perplexity}
  - {name: exact_match}
  - {name: multiple_choice, data: [{path: hf://a/b}]}
  - {name: passkey, lengths: [64, 128], positions: [0.1, 0.5]}
data: {evaluation: [{path: hf://org/x, split: test}], max_length: 128}
decoding: {max_new_tokens: 8, batch_size: 2}
limit: 3
fail_if: {exact_match: "< 0.5"}
"""
VALUES = {"recipe": RECIPE, "cluster": CLUSTER, "evaluation": EVALUATION}
COMMANDS = {
    "recipe": ["validate", "FILE"],
    "cluster": ["manifest", "runnable.yaml", "--cluster", "FILE"],
    "evaluation": ["evaluate", "no-run", "--with", "FILE"],
}
ADAPTER_COMMANDS = (
    ["merge", "damaged", "--to", "out"],
    ["average", "damaged", "damaged", "--to", "out"],
    ["generate", "damaged", "--prompt", "Hi", "--max-new-tokens", "1"],
    ["export", "damaged", "--to", "out"],
    ["evaluate", "damaged", "tasks=[{name: perplexity}]"],
)


class Outcomes:
    """The exit codes of many commands, and the first command of each failure."""

    def __init__(self) -> None:
        self.codes: Counter[int] = Counter()
        self.failures: dict[str, str] = {}
        self.slowest = (0.0, "")

    def run(self, words: list[str], about: str) -> None:
        out, err = io.StringIO(), io.StringIO()
        began = time.thread_time()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(words)
        seconds = time.thread_time() - began
        self.codes[code] += 1
        self.slowest = max(self.slowest, (seconds, about))
        message = err.getvalue()
        wrong = code not in (0, 2) or (code == 2 and not message.strip()) or "Traceback" in message
        if wrong or "\x1b" in message + out.getvalue():
            self.failures.setdefault(f"{code}: {message.strip()[-200:]}", about)


def fuzz_files(folder: Path, cases: int, seed: int) -> Outcomes:
    chance, outcomes = random.Random(seed), Outcomes()
    parsed = {kind: yaml.safe_load(text) for kind, text in VALUES.items()}
    (folder / "runnable.yaml").write_text(RUNNABLE)
    for number in range(cases):
        kind = chance.choice(["recipe", "recipe", "cluster", "evaluation"])
        if chance.random() < 0.6:
            values = broken(parsed[kind], chance)
            text = yaml.safe_dump(values, allow_unicode=True, sort_keys=False).encode(
                "utf-8", "surrogatepass"
            )
        else:
            text = damaged_bytes(VALUES[kind].encode(), chance)
        (folder / "file.yaml").write_bytes(text)
        words = ["file.yaml" if word == "FILE" else word for word in COMMANDS[kind]]
        if chance.random() < 0.3:
            words += override_words(chance)
        outcomes.run(words, f"case {number} of seed {seed}: {words} on {text[:2000]!r}")
    return outcomes


def fuzz_adapters(place: Path, cases: int, seed: int) -> Outcomes:
    chance, outcomes = random.Random(seed), Outcomes()
    for number in range(cases):
        for name in ("damaged", "out"):
            shutil.rmtree(place / name, ignore_errors=True)
        shutil.copytree(place / "adapter", place / "damaged")
        about = _damage(place / "damaged", chance)
        words = chance.choice(ADAPTER_COMMANDS)
        outcomes.run(words, f"case {number} of seed {seed}: {words} with {about}")
    return outcomes


def _damage(folder: Path, chance: random.Random) -> str:
    """Damage one file of a folder. Returns what was done."""
    file = chance.choice(sorted(path for path in folder.iterdir() if path.is_file()))
    action = chance.random()
    if action < 0.1:
        file.unlink()
        return f"no {file.name}"
    if action < 0.15:
        file.unlink()
        file.mkdir()
        return f"a folder {file.name}"
    if file.suffix == ".json" and action < 0.7:
        values = broken(json.loads(file.read_text()), chance)
        file.write_text(json.dumps(values))
        return f"{file.name} = {json.dumps(values)[:1500]}"
    content = file.read_bytes()
    head = content[:400] if file.suffix == ".safetensors" else content
    file.write_bytes(damaged_bytes(head, chance) + content[len(head) :])
    return f"{file.name} = {file.read_bytes()[:500]!r}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter and its base."""
    folder = tmp_path_factory.mktemp("adapters")
    base = tiny_llama(folder / "base", hidden_size=16, num_hidden_layers=1)
    random_adapter(folder / "adapter", base)
    return folder


def check(outcomes: Outcomes) -> None:
    assert not outcomes.failures, "\n\n".join(f"{what}\n{about}" for what, about in outcomes.failures.items())
    seconds, about = outcomes.slowest
    assert seconds < MAX_SECONDS, about


def test_damaged_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    main(["evaluate", "no-run"])  # imports, which take seconds once
    outcomes = fuzz_files(tmp_path, 1500, seed=0)
    check(outcomes)
    assert outcomes.codes[2] > 750
    assert outcomes.codes[0] > 2


def test_damaged_adapters(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    fuzz_adapters(place, 1, seed=1)  # imports
    outcomes = fuzz_adapters(place, 60, seed=0)
    check(outcomes)
    assert outcomes.codes[2] > 20


def test_a_crash_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: a rule that fails on a value of another type."""
    from tailor.spec import load

    def fails(document: object, wrong: object) -> list[object]:
        raise TypeError("unexpected value")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(load, "RULES", (fails,))
    outcomes = fuzz_files(tmp_path, 20, seed=0)
    assert outcomes.codes[INTERNAL_ERROR] > 0
    with pytest.raises(AssertionError, match="internal error: TypeError"):
        check(outcomes)


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("what", ["files", "adapters"])
def test_many_damaged_files(what: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    fuzz: Callable[[Path, int, int], Outcomes] = fuzz_files if what == "files" else fuzz_adapters
    fuzz(place, 5, 0)
    before = _peak_bytes()
    outcomes = fuzz(place, CASES if what == "files" else CASES // 50, 1)
    print(f"{what}: exit codes {dict(outcomes.codes)}, slowest {outcomes.slowest[0]:.2f} s")
    check(outcomes)
    assert _peak_bytes() - before < MAX_BYTES


def _peak_bytes() -> int:
    """Peak memory of this process."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
