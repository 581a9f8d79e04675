"""benchmarks/gpu.py: a part that fails ends only itself, and the code of every part runs on a CPU with tiny shapes."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from tests.docs.test_pages import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu.py"
STAND_IN = """
import os, sys, time
name = sys.argv[2]
print('{"part": "%s", "figure": 1}' % name, flush=True)
if name == "lora":
    sys.exit("Traceback: ...\\nValueError: odd")
if name == "qlora":
    time.sleep(600)
if name == "full":
    print("CUDA out of memory", file=sys.stderr)
    sys.exit(3)
if name == "nf4":
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_kit", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look up their module there
    spec.loader.exec_module(module)
    return module


def lines_of(capfd: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()]


def test_a_part_that_fails_ends_only_itself(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "part.py").write_text(STAND_IN)
    monkeypatch.setattr(gpu, "__file__", str(tmp_path / "part.py"))
    monkeypatch.setitem(gpu.PARTS, "qlora", replace(gpu.PARTS["qlora"], seconds=1))
    names = ["lora", "qlora", "full", "nf4", "loss"]
    assert gpu.run_all(names, tmp_path, seconds=60.0, tiny=False) == names[:-1]
    found = lines_of(capfd)
    assert [one["part"] for one in found if "figure" in one] == ["model", *names]
    errors = {one["part"]: one["error"] for one in found if "error" in one}
    assert errors == {
        "lora": "ValueError: odd",
        "qlora": "the time limit of 1 s",
        "full": "out of memory: CUDA out of memory",
        "nf4": "ended by signal 9",
    }


def test_the_whole_time_is_limited(
    gpu: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert gpu.run_all(["loss"], tmp_path, seconds=0.0, tiny=True) == ["model", "loss"]
    assert all("no time is left" in str(one["error"]) for one in lines_of(capfd))


def test_no_gpu_is_an_error_with_a_hint(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "has_gpu", lambda: False)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT)])
    assert gpu.main() == 2
    assert "hint: --tiny" in capsys.readouterr().err


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_every_part_runs_with_tiny_shapes(gpu: ModuleType) -> None:
    command = [sys.executable, str(SCRIPT), "--tiny", "--minutes", "25"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, [one for one in found if "error" in one]
    measured = {one["part"] for one in found if "seconds" not in one}
    assert measured == set(gpu.PARTS)
    trained = [one for one in found if "tokens_per_second" in one]
    assert len(trained) == 11
    assert all(one["tokens_per_second"] > 0 and one["forecast_gib"] > 0 for one in trained)
