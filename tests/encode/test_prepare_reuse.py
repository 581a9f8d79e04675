"""A token store is prepared once: when it is reused, when it is prepared again, and what a kill leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tailor.encode import fingerprint
from tailor.encode import prepare as prepare_module
from tailor.store import Store
from tests.helpers.preparation import contents, talk, write


def test_reused_until_something_that_matters_changes(bench):
    first = bench()
    assert bench().reused
    # What only decides how examples are shown or budgeted does not matter.
    assert bench(pack=False, budget={"dropped": 0.5}, train=[{"path": bench.rows, "weight": 3.0}]).reused
    made = [
        bench(max_length=127),
        bench(on_long="truncate"),
        bench(holdout=0.1),
        bench(template="qwen-2.5"),
        bench(train_on="last_assistant"),
        bench(train=[{"path": bench.rows, "limit": 100}]),
    ]
    template = bench.folder / "own.jinja"
    template.write_text(
        Path(prepare_module.__file__).with_name("templates").joinpath("chatml.jinja").read_text()
    )
    made.append(bench(template=str(template)))
    template.write_text(template.read_text() + "{# another text #}")
    made.append(bench(template=str(template)))
    content = json.loads((bench.model / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Lowercase"}
    (bench.model / "tokenizer.json").write_text(json.dumps(content))
    made.append(bench())
    write(Path(bench.rows), [talk(n) for n in range(199)])
    made.append(bench())
    assert not any(prepared.reused for prepared in made)
    fingerprints = {prepared.tokens.fingerprint for prepared in [first, *made]}
    assert len(fingerprints) == len(made) + 1
    assert sorted(Store(bench.store).names()) == sorted(fingerprints)


def test_a_changed_encoder_prepares_again(bench, monkeypatch):
    bench()
    monkeypatch.setattr(fingerprint, "ENCODE_VERSION", fingerprint.ENCODE_VERSION + 1)
    assert not bench().reused


def test_reuse_reads_no_row(bench, monkeypatch):
    bench()
    monkeypatch.setattr(prepare_module, "_write", None)
    assert bench().reused


def test_two_at_once(bench):
    with ThreadPoolExecutor(4) as pool:
        prepared = list(pool.map(lambda _: bench(), range(4)))
    assert len({made.tokens.url for made in prepared}) == 1
    assert all(contents(made.tokens) == contents(prepared[0].tokens) for made in prepared)
    assert Store(bench.store).names() == [prepared[0].tokens.fingerprint]


KILLED = """
import sys, time
from tailor.encode import prepare, sources, tasks
from tailor.spec.data import Data
from tailor.spec.methods.sft import Sft
from tailor.spec.model import Model
sources.PART_BYTES = 2000
def slow(work, tasks):
    for number, task in enumerate(tasks):
        yield work(task)
        if number == 2:
            print("half", flush=True)
            time.sleep(60)
data = Data(train=[{"path": sys.argv[1]}], template="chatml", max_length=128)
prepare.prepare(data, Model(path=sys.argv[2]), Sft(name="sft"), sys.argv[3], runner=slow)
"""


def test_a_kill_leaves_no_half_store(bench):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, bench.rows, str(bench.model), bench.store],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (rubbish,) = Store(bench.store).names()
    assert rubbish.startswith(".staging-")
    assert Store(bench.store).names(rubbish)
    prepared = bench()
    assert not prepared.reused
    assert len(prepared.tokens.split("train")) == 200
    # The next preparation sweeps the dead one's rubbish away, but not what a living one is writing.
    assert Store(bench.store).names() == [prepared.tokens.fingerprint]
    living = rubbish.replace(f"-{process.pid}-", f"-{os.getpid()}-")
    Store(bench.store).write_text(f"{living}/x", "")
    bench(max_length=100)
    assert living in Store(bench.store).names()
