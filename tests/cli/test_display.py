"""The live display and its plain form."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from tailor.cli import display as displays
from tailor.cli.display import Display, Progress
from tests.helpers.run_folders import train_record


def shown(steps: int, **values: float) -> str:
    """What a run of so many quick steps prints where there is no terminal."""
    stream = io.StringIO()
    with Display(stream=stream) as display:
        display.training(steps, 0)
        for step in range(1, steps + 1):
            display.record(train_record(step, **values))
    return stream.getvalue()


def test_plain_lines_come_for_the_first_step_the_last_and_each_tenth_of_the_way() -> None:
    steps = [int(step) for step in re.findall(r"^step (\d+)/200", shown(200), flags=re.M)]
    assert steps == [1, *range(20, 201, 20)]


def test_plain_lines_come_every_few_seconds_when_steps_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(displays, "PLAIN_SECONDS", 0.0)
    assert len(re.findall(r"^step ", shown(200), flags=re.M)) == 200


def test_plain_lines_have_no_control_codes_and_take_brackets_as_they_are() -> None:
    stream = io.StringIO()
    with Display(stream=stream) as display:
        display.line("from [red]here[/red]: :smile:")
        display.record({"kind": "status", "message": "model [x] loaded"})
    assert stream.getvalue() == "from [red]here[/red]: :smile:\nmodel [x] loaded\n"


def test_frequent_evaluations_are_not_all_printed_but_the_last_one_is() -> None:
    stream = io.StringIO()
    with Display(stream=stream) as display:
        display.training(100, 0)
        for step in range(10, 101, 10):
            record = {
                "kind": "evaluation",
                "step": step,
                "loss": 1.0,
                "perplexity": 2.7,
                "token_accuracy": 0.5,
            }
            display.record(record)
    assert re.findall(r"step (\d+): evaluation", stream.getvalue()) == ["10", "100"]


def test_both_losses_of_a_step_are_shown() -> None:
    parts = {"embedding_loss": 1.25, "generative_loss": 0.75, "embedding_accuracy": 0.5}
    text = shown(200, loss=2.0, without_negatives=0.125, **parts)
    assert (
        "loss 2.0000  embedding loss 1.2500  generative loss 0.7500  embedding accuracy 50.0%  "
        "queries without negatives 12.5%  lr"
    ) in text
    alone = shown(200, loss=1.25, embedding_loss=1.25, embedding_accuracy=0.5)
    assert "loss 1.2500  embedding accuracy 50.0%  lr" in alone, (
        "a loss that is the whole one is not repeated"
    )


def test_steps_without_negatives_are_reported_once() -> None:
    assert shown(200, without_negatives=1.0).count(displays.NO_NEGATIVES) == 1
    assert displays.NO_NEGATIVES not in shown(200, without_negatives=0.5)


def test_the_remaining_time_leaves_the_first_step_out() -> None:
    progress = Progress()
    progress.start(101, 0)
    progress.take(train_record(1, step_seconds=60.0))
    assert progress.seconds_left is None
    progress.take(train_record(2, step_seconds=2.0))
    assert progress.seconds_left == pytest.approx(99 * 2.0)


def test_the_terminal_shows_a_bar_the_figures_and_the_curve() -> None:
    display = Display(stream=io.StringIO())
    display.training(40, 0)
    for step in range(1, 21):
        display.record(train_record(step))
    console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)
    console.print(display)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for told in (
        "step 20/40",
        "loss 2.1537",
        "lr 1.00e-03",
        "5.00k tok/s",
        "3.0 GiB",
        "4.0 s left",
        "█",
        "━",
    ):
        assert told in text


def test_a_terminal_that_went_away_does_not_stop_the_run() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with Display(stream=Gone()) as display:
        display.training(2, 0)
        display.record(train_record(1))
        display.line("still going")
