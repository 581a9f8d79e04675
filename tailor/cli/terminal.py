"""What commands write to the terminal. Foreign text cannot control it: unsafe characters are escaped.

`guarded` does it for everything that is printed, `make_console` for what rich prints, whose own control sequences stay.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tailor.printable import printable
from tailor.redaction import redacted

if TYPE_CHECKING:
    from rich.console import Console


class _Guarded:
    """A text stream that escapes what is written. redact: secrets too."""

    def __init__(self, stream: Any, *, redact: bool) -> None:
        self._stream, self._redact = stream, redact
        self.rich_proxied_file = stream
        """Where rich writes (its name for it), because it escapes by itself: see `make_console`."""

    def write(self, text: str) -> int:
        self._stream.write(printable(redacted(text) if self._redact else text, lines=True))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def guarded() -> Iterator[None]:
    """Guard stdout and stderr. Only stderr redacts secrets: stdout may be data, which must not change unnoticed."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Guarded(before[0], redact=False), _Guarded(before[1], redact=True)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def make_console(**options: Any) -> Console:
    """A console for tables and styled text, which escapes foreign text and interprets no markup in it."""
    from rich.console import Console

    made = Console(**{"highlight": False, "markup": False, "emoji": False, **options})
    made.push_render_hook(Escaping())
    return made


class Escaping:
    """A hook of rich: wraps what is printed."""

    def process_renderables(self, renderables: list[Any]) -> list[Any]:
        return [_Escaped(renderable) for renderable in renderables]


class _Escaped:
    """A renderable whose texts are escaped after their layout."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: Any) -> Iterator[Any]:
        from rich.segment import Segment

        for segment in console.render(self._inner, options):
            yield (
                segment if segment.control else Segment(printable(segment.text, lines=True), segment.style)
            )
