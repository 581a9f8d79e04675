"""CPU seconds of the parts of preparation: each function's own, without those of the parts that it calls."""

from __future__ import annotations

import functools
import inspect
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

OTHER = "other"


class Clocks:
    """Counts the seconds of functions that it replaces by counted ones. The tokenizer's threads count too."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._running = [OTHER]
        self._since = time.process_time()

    def _switch(self) -> None:
        now = time.process_time()
        self.seconds[self._running[-1]] += now - self._since
        self._since = now

    def _enter(self, part: str) -> None:
        self._switch()
        self._running.append(part)

    def _leave(self) -> None:
        self._switch()
        self._running.pop()

    def count(self, part: str, owner: Any, name: str) -> None:
        """Replace a function of a module or a class. Of a generator, every step counts."""
        static = inspect.getattr_static(owner, name)
        function = static.__func__ if isinstance(static, classmethod) else static

        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self._enter(part)
            try:
                result = function(*args, **kwargs)
            finally:
                self._leave()
            return self._steps(part, result) if inspect.isgenerator(result) else result

        setattr(owner, name, classmethod(counted) if isinstance(static, classmethod) else counted)

    def _steps(self, part: str, steps: Iterator[Any]) -> Iterator[Any]:
        while True:
            self._enter(part)
            try:
                value = next(steps)
            except StopIteration:
                return
            finally:
                self._leave()
            yield value

    def shares(self, work: Callable[[], object]) -> dict[str, float]:
        """Call `work`. Part -> its share of the CPU seconds, largest first."""
        self._since = time.process_time()
        work()
        self._switch()
        total = sum(self.seconds.values())
        ordered = sorted(self.seconds.items(), key=lambda item: -item[1])
        return {part: round(seconds / total, 3) for part, seconds in ordered}


def clocks_of_preparation() -> Clocks:
    from tailor.encode import masks, prepare, tasks
    from tailor.encode.examples import Encoder
    from tailor.encode.inputs import Inputs
    from tailor.encode.readers import Reader
    from tailor.encode.tokenizer import Tokenizer
    from tailor.encode.unused import Watch

    clocks = Clocks()
    for part, owner, *names in (
        ("set-up", Inputs, "of"),
        ("set-up", prepare, "fingerprint_of"),
        ("reading", Reader, "__iter__"),
        ("normalizing", tasks, "guarded"),
        ("normalizing", Watch, "add"),
        ("rendering", masks, "render", "render_marked"),
        ("tokenizing", Tokenizer, "encode_batch", "encode_with_positions", "encode"),
        ("masks", Encoder, "__call__"),
        ("writing", tasks._Shards, "add", "flush", "close"),
        ("report", prepare, "_manifest"),
    ):
        for name in names:
            clocks.count(part, owner, name)
    return clocks
