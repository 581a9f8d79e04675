"""Label smoothing, z-loss and NEFTune in the loop: what is logged, what is evaluated, and what changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tailor.train import loop
from tests.helpers.hosts import PlainHost
from tests.helpers.models import tiny_llama
from tests.helpers.plans import make_plan
from tests.helpers.stores import make_store

TERMS = {"label_smoothing": 0.1, "z_loss": 1e-2}
NOISE = {"neftune_alpha": 10}
Z_LOSS = {"z_loss": 1e-2}
FROZEN = {"learning_rate": 1e-12, "schedule": "constant"}
"""Every step has the same weights, to rounding."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Path]:
    folder = tmp_path_factory.mktemp("regularization")
    tokens = make_store(folder / "tokens", [20, 33, 41, 25] * 3, evaluation=[20, 30])
    return tiny_llama(folder / "model"), tokens, folder


def run(made: tuple[Path, Any, Path], name: str, host: PlainHost | None = None, **sections: Any) -> PlainHost:
    model, tokens, folder = made
    host = host or PlainHost()
    method = {"name": "sft", **sections.pop("method", {})}
    train = {"steps": 3, **sections.pop("train", {})}
    loop.run(make_plan(model, tokens, folder / name, method=method, train=train, **sections), host)
    return host


def test_evaluations_are_without_terms_and_noise(made: tuple[Path, Any, Path]) -> None:
    plain, terms, z_loss, noise = (
        run(made, name, method=method, optim=FROZEN)
        for name, method in (("plain", {}), ("terms", TERMS), ("z", Z_LOSS), ("noise", NOISE))
    )
    for host in (terms, z_loss, noise):
        for found, expected in zip(host.evaluations(), plain.evaluations(), strict=True):
            for metric in ("loss", "perplexity", "token_accuracy"):
                assert found[metric] == pytest.approx(expected[metric], rel=1e-6)
    trios = zip(terms.of("train"), z_loss.of("train"), plain.of("train"), strict=True)
    for both, one, expected in trios:
        # A record has the loss that is trained, the cross-entropy, and the squared logsumexp.
        assert both["cross_entropy"] == pytest.approx(expected["loss"], rel=1e-6)
        assert one["loss"] == pytest.approx(expected["loss"] + 1e-2 * one["z_loss"], rel=1e-6)
        assert both["z_loss"] == pytest.approx(one["z_loss"], rel=1e-6)
        assert abs(both["loss"] - one["loss"]) > 1e-3, "smoothing"
    assert not {"cross_entropy", "z_loss"} & plain.of("train")[0].keys()
    # Control: training has the noise.
    differences = [abs(a - b) for a, b in zip(noise.losses(), plain.losses(), strict=True)]
    assert min(differences) > 1e-4


def test_a_run_resumes_with_the_same_noise(made: tuple[Path, Any, Path]) -> None:
    whole = run(made, "whole", method={**NOISE, **TERMS})
    stopped = run(made, "stopped", PlainHost(stop_after=1), method={**NOISE, **TERMS})
    resumed = PlainHost(resume_from=str(made[2] / "stopped"))
    run(made, "stopped", resumed, method={**NOISE, **TERMS})
    assert stopped.losses() + resumed.losses() == whole.losses()
    assert resumed.evaluations() == whole.evaluations()
    other = PlainHost(resume_from=str(made[2] / "stopped"))
    run(made, "stopped", other, method={**NOISE, **TERMS}, train={"seed": 1})
    assert other.losses() != resumed.losses(), "the control"


def test_micro_batches_and_layouts_change_nothing(made: tuple[Path, Any, Path]) -> None:
    sections: dict[str, Any] = {"method": {**NOISE, **TERMS}, "data": {"pack": False}}
    one = run(made, "one", **sections).losses()
    four = run(made, "four", **sections, train={"micro_batch_size": 4}).losses()
    rows = run(made, "rows", **sections, model={"attention": "sdpa"}, train={"micro_batch_size": 2}).losses()
    assert four == pytest.approx(one, abs=1e-5)
    assert rows == pytest.approx(one, abs=1e-5)
