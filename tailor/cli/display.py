"""The display of a run in progress: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tailor.cli.terminal import Escaping
from tailor.onray import display
from tailor.printable import printable
from tailor.runs.report.textplot import sparkline
from tailor.runs.words import duration, measured, number, size

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import RenderableType

Record = dict[str, Any]

PLAIN_SECONDS = 10.0
"""Maximum time between two training lines without a terminal."""
EVALUATION_SECONDS = 5.0
"""Minimum time between two evaluation lines."""
SHOWN_STEPS = 300
"""Number of newest steps in the sparkline of losses."""
SPEED_STEPS = 20
"""Steps over which the remaining time is averaged."""
NO_NEGATIVES = (
    "no query had a negative passage, so the contrastive loss is 0 and trains nothing: the texts may be equal after "
    "truncation (data.max_length), or method.mask_duplicates or method.false_negative_margin excludes all other passages"
)


class Progress:
    """The state of training, from its metric records."""

    def __init__(self) -> None:
        self.step = 0
        self.steps = 0
        self.first_step = 0
        self.losses: deque[float] = deque(maxlen=SHOWN_STEPS)
        self.last: Record = {}
        self.evaluation: Record | None = None
        self._recent: deque[Record] = deque(maxlen=SPEED_STEPS)

    def start(self, steps: int, step: int) -> None:
        self.steps, self.step, self.first_step = steps, step, step

    def take(self, record: Record) -> None:
        if record["kind"] == "train":
            self.step, self.last = record["step"], record
            self.losses.append(record["loss"])
            self._recent.append(record)
        elif record["kind"] == "evaluation":
            self.evaluation = record

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the last step. None before the second step: the first one includes warm-up."""
        recent = list(self._recent)  # a copy: the display's own thread reads while training writes
        recent = recent[1:] if self.step - self.first_step <= SPEED_STEPS else recent
        if not recent:
            return None
        seconds: float = sum(record["step_seconds"] for record in recent)
        return (self.steps - self.step) * seconds / len(recent)

    def figures(self) -> list[str]:
        """The newest step's numbers, for one line."""
        last = self.last
        parts = [f"loss {last['loss']:.4f}", *measured(last), f"lr {last['learning_rate']:.2e}"]
        parts.append(f"{number(last['tokens_per_second'])} tok/s")
        if last.get("peak_memory_bytes"):
            parts.append(size(last["peak_memory_bytes"]))
        if (remaining := self.seconds_left) is not None and self.step < self.steps:
            parts.append(f"{duration(remaining)} left")
        return parts


class _Console(Console):
    """A console that keeps the run alive when the reader of the pipe exits (`tailor run … | head`)."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        self.file = open(os.devnull, "w")  # noqa: SIM115 - open until the process ends


class Display(display.Display):
    """Shows a run. Use it as a context; its methods are called from one thread at a time."""

    def __init__(self, *, stream: Any = None, plain: bool = False) -> None:
        """plain: print lines, even on a terminal or in a notebook."""
        self.console = _Console(
            file=stream or sys.stdout,
            highlight=False,
            markup=False,
            emoji=False,
            soft_wrap=True,
            **({"force_terminal": False, "force_jupyter": False} if plain else {}),
        )
        self.console.push_render_hook(Escaping())
        self.progress = Progress()
        self._live: Live | None = None
        self._now = ""
        self._since = time.monotonic()
        self._printed = time.monotonic()
        self._printed_step = 0
        self._evaluated = -EVALUATION_SECONDS
        self._warned_no_negatives = False

    def __enter__(self) -> Display:
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self._live = Live(
                self, console=self.console, refresh_per_second=4, transient=True, redirect_stderr=False
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def doing(self, what: str) -> None:
        """Show the current activity until the next call or line."""
        self._now, self._since = printable(what), time.monotonic()

    def line(self, text: str) -> None:
        """Print a permanent line."""
        self._now = ""
        self.console.print(Text(text))

    def preparing(self, progress: Any) -> None:
        """Show the progress of preparation (`tailor.encode.prepare.Progress`)."""
        share = progress.bytes / progress.total_bytes if progress.total_bytes else 1.0
        self._now = f"preparing data: {share:.0%}, {number(progress.rows)} rows"
        if self._live is None and time.monotonic() - self._printed >= PLAIN_SECONDS:
            self._printed = time.monotonic()
            self.console.print(self._now)

    def evaluating(self, done: int, total: int, seconds_left: float | None) -> None:
        """Show how many rows of an evaluation are done. seconds_left: None while it is not known."""
        self._counting("evaluating", done, total, seconds_left)

    def embedding(self, done: int, total: int, seconds_left: float | None) -> None:
        """Show how many texts are embedded."""
        self._counting("embedding", done, total, seconds_left)

    def _counting(self, what: str, done: int, total: int, seconds_left: float | None) -> None:
        remaining = f", {duration(seconds_left)} left" if seconds_left is not None else ""
        self._now = f"{what}: {done:,} of {total:,} rows{remaining}"
        if self._live is None and time.monotonic() - self._printed >= PLAIN_SECONDS:
            self._printed = time.monotonic()
            self.console.print(self._now)

    def training(self, steps: int, step: int) -> None:
        """Training starts after `step` and ends at `steps`."""
        self.progress.start(steps, step)

    def record(self, record: Record) -> None:
        """Show one metric record of rank 0."""
        self.progress.take(record)
        match record["kind"]:
            case "status":
                self.line(record["message"])
            case "train":
                self._now = ""
                if self._live is None:
                    self._plain_step()
                if record.get("without_negatives") == 1 and not self._warned_no_negatives:
                    self._warned_no_negatives = True
                    self.line(f"step {record['step']}: {NO_NEGATIVES}")
            case "evaluation":
                self._evaluation(record)
            case "retrieval":
                figures = ", ".join(
                    f"{name} {record[name]:.1%}" for name in ("recall@1", "recall@10", "ndcg@10")
                )
                self.line(f"step {record['step']}: {figures} of {record['queries']:,} queries")
            case "generation":
                self.line(
                    f"exact match {record['when']} training: {record['exact_match']:.1%} of {record['count']} answers"
                )

    def _evaluation(self, record: Record) -> None:
        """Print an evaluation, at most one per EVALUATION_SECONDS. The last one is always printed."""
        if time.monotonic() - self._evaluated < EVALUATION_SECONDS and record["step"] != self.progress.steps:
            return
        self._evaluated = time.monotonic()
        figures = ", ".join([f"evaluation loss {record['loss']:.4f}", *measured(record)])
        self.line(f"step {record['step']}: {figures}")

    def _plain_step(self) -> None:
        """Print the first step, the last one, each tenth of all steps, and one at least every PLAIN_SECONDS."""
        progress = self.progress
        tenth = max(1, progress.steps // 10)
        due = (
            progress.step in (progress.first_step + 1, progress.steps)
            or progress.step // tenth > self._printed_step // tenth
            or time.monotonic() - self._printed >= PLAIN_SECONDS
        )
        if due:
            self._printed, self._printed_step = time.monotonic(), progress.step
            self.console.print(f"step {progress.step}/{progress.steps}  " + "  ".join(progress.figures()))

    def __rich__(self) -> RenderableType:
        progress = self.progress
        parts: list[RenderableType] = []
        if self._now:
            seconds = time.monotonic() - self._since
            parts.append(
                Text(f"{self._now} … {duration(seconds)}" if seconds >= 1 else f"{self._now} …", "dim")
            )
        if progress.steps and progress.last:
            bar = Table.grid(padding=(0, 1))
            bar.add_row(
                Text(f"step {progress.step}/{progress.steps}", "bold"),
                ProgressBar(total=progress.steps, completed=progress.step, width=30),
                Text("  ".join(progress.figures())),
            )
            parts.append(bar)
            parts.append(Text(sparkline(list(progress.losses), width=60), "blue"))
        return Group(*parts)
