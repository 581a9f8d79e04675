"""The Python interface: load and run recipes; read a run's metrics, generate with it, evaluate it.

Errors are TailorErrors with the same message and hint as on the command line. Importing this loads neither torch nor Ray.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailor.layout import EVALUATION, RECIPE, RESULTS
from tailor.quiet import quiet

if TYPE_CHECKING:
    from tailor.artifacts.load import Loaded
    from tailor.cli.display import Display
    from tailor.models.own_code import Trust
    from tailor.spec.recipe import Recipe
    from tailor.spec.suite import Suite

Overrides = Mapping[str, Any]
"""Dotted key -> value, such as `{"optim.learning_rate": 1e-4}`."""


def load(path: str | os.PathLike[str], overrides: Overrides | None = None) -> LoadedRecipe:
    """Load and check a recipe. overrides: keys to change. Raises RecipeError, which lists all problems."""
    from tailor.cli.resumable import load_to_run

    return LoadedRecipe(load_to_run(path, _arguments(overrides)))


class LoadedRecipe:
    """A checked recipe. `spec` has its sections, as in `recipe.spec.optim.learning_rate`."""

    def __init__(self, spec: Recipe) -> None:
        self.spec = spec

    def __repr__(self) -> str:
        return f"LoadedRecipe(model={self.spec.model.path!r}, to={self.spec.save.to!r})"

    def yaml(self) -> str:
        """The complete recipe as YAML, with all defaults."""
        from tailor.spec.load import resolved_yaml

        return resolved_yaml(self.spec)

    def run(self, *, verbose: bool = False) -> Run:
        """Train the recipe and return the finished run, like `tailor run`.

        Progress is printed as plain lines. Ctrl-C (or interrupting a notebook cell) saves a checkpoint and raises
        KeyboardInterrupt; outside the main thread no signal handler is set. Raises GateError if a bound of
        `evaluate.final.fail_if` is violated, and other TailorErrors like the command.
        """
        from tailor.errors import StoreError

        if self.spec.save.to.startswith("memory:"):
            raise StoreError(
                f"{self.spec.save.to} is in the memory of this process and is lost when the command ends",
                hint="set save.to to a folder on a disk or in an object store",
            )
        with _display(verbose) as display:
            from tailor.export import recipe as handover
            from tailor.onray import run

            handover.require(self.spec)
            outcome = run.execute(self.spec, display, verbose=verbose)
            if outcome.evaluated is not None:
                outcome.evaluated.require()
            handover.push(self.spec, display.line)
        return Run(outcome.run.url, trust_remote_code=self.spec.model.trust_remote_code)


class Run:
    """A run, finished or not. Raises StoreError if there is no run folder at `path`.

    trust_remote_code: run the Python code in the folder of its model, or of the base; only for code that you have read.
    """

    def __init__(self, path: str | os.PathLike[str], *, trust_remote_code: bool = False) -> None:
        from tailor.store import run_folder

        self._store = run_folder.find(os.fspath(path))
        self._trusts = trust_remote_code
        self._loaded: Loaded | None = None

    def __repr__(self) -> str:
        return f"Run({self.path!r}, {self.status})"

    @property
    def path(self) -> str:
        """The run folder, as an absolute path or a URL."""
        return self._store.url

    @property
    def status(self) -> str:
        """`running`, `finished`, `failed`, `interrupted` (Ctrl-C or SIGTERM), `stopped` (killed) or `unknown`."""
        from tailor.runs.status import Status, state_of

        return state_of(self._store, Status.read(self._store))

    @property
    def artifact(self) -> str | None:
        """The folder of the adapter or model; None before it is written."""
        from tailor.store import run_folder

        kind = run_folder.artifact(self._store)
        return None if kind is None else self._store.join(kind).url

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """All metric records so far, in order. `kind` is train, evaluation, retrieval or generation."""
        from tailor.runs.log import read

        return read(self._store)

    def columns(self, kind: str = "train") -> dict[str, list[Any]]:
        """The records of one kind as columns, for `pandas.DataFrame` or matplotlib. Missing values are None."""
        records = [record for record in self.metrics if record["kind"] == kind]
        keys = dict.fromkeys(key for record in records for key in record if key != "kind")
        return {key: [record.get(key) for record in records] for key in keys}

    def summary(self) -> dict[str, str]:
        """The first lines of `tailor show`, as label -> text."""
        from tailor.runs.report.page import summary

        return dict(summary(self._store, self.metrics))

    def recipe(self) -> LoadedRecipe:
        """The resolved recipe of the run."""
        from tailor.spec.load import load_recipe

        return LoadedRecipe(load_recipe(self._store.local_path(RECIPE), check_files=False))

    @property
    def evaluations(self) -> dict[str, Evaluation]:
        """The finished evaluations in the run folder, by name."""
        from tailor.runs import evaluations

        return {
            name: Evaluation(self._store.join(EVALUATION, name).url)
            for name in evaluations.names(self._store)
        }

    def evaluate(
        self,
        suite: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        overrides: Overrides | None = None,
        *,
        to: str | None = None,
        verbose: bool = False,
    ) -> Evaluation:
        """Evaluate the run, like `tailor evaluate`.

        suite: path of an evaluation file, or its content as a mapping; by default the evaluation that `tailor evaluate`
        runs without `--with`. to: folder for the results. Raises GateError, after the results are written, if a bound of
        `fail_if` is violated.
        """
        from tailor.cli.evaluate import DEFAULT_NAME, chosen
        from tailor.spec.load import with_overrides

        found: Suite
        if isinstance(suite, Mapping):
            found, name = with_overrides(dict(suite), "evaluation", _arguments(overrides)), DEFAULT_NAME
        else:
            file = None if suite is None else os.fspath(suite)
            found, name = chosen(self.path, file, _arguments(overrides))
        with _display(verbose) as display:
            from tailor.onray.evaluate import evaluate

            outcome = evaluate(
                self.path, found, display, name=name, to=to, trust=self._trust(), verbose=verbose
            )
        outcome.require()
        return Evaluation(outcome.folder.url)

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        system: str | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        batch_size: int = 16,
        whole_prompt: bool = False,
    ) -> list[str]:
        """Generate an answer to each prompt, with the run's chat template (without a template, continue the text).

        A run with `data.on_long: retrieve` shortens over-long prompts as `data.retrieve` says, with a line on stderr for
        each. whole_prompt: use them whole. The model is loaded in the first call and stays in memory until `unload()`.
        Raises DataError for an empty prompt.
        """
        from tailor.errors import DataError

        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if any(not isinstance(prompt, str) or not prompt for prompt in texts):
            raise DataError("prompts must be non-empty strings")
        quiet()
        from tailor.artifacts.load import load_run
        from tailor.artifacts.long_prompts import prompt_retrieval
        from tailor.evaluate.continuous import generate
        from tailor.evaluate.generation import Sampling

        if self._loaded is None:
            self._loaded = load_run(self.path, trust=self._trust())
        loaded = self._loaded
        system_turns = [{"role": "system", "content": system}] if system else []
        if system:
            loaded.require_template()
        retrieval = None if whole_prompt else prompt_retrieval(self.path)
        ids = [
            loaded.prompt_ids([*system_turns, {"role": "user", "content": prompt}])
            if loaded.tokenizer.template is not None
            else loaded.tokenizer.encode_prompt(prompt)
            for prompt in texts
        ]
        for at, prompt in enumerate(ids if retrieval else ()):
            if found := retrieval and retrieval.shorten(prompt, loaded.tokenizer, max_new_tokens):
                print(f"prompt {at + 1}: {found.line()}", file=sys.stderr)
                ids[at] = found.ids
        answers = generate(
            loaded.model,
            ids,
            max_new_tokens=max_new_tokens,
            stop_ids=loaded.stop_ids,
            batch_size=batch_size,
            pad_id=loaded.pad_id,
            sampling=Sampling(temperature, top_p, seed),
        )
        if loaded.tokenizer.template is None:
            return [
                loaded.continuation_text(prompt, answer) for prompt, answer in zip(ids, answers, strict=True)
            ]
        return [loaded.reply(prompt, answer).text for prompt, answer in zip(ids, answers, strict=True)]

    def _trust(self) -> Trust:
        from tailor.artifacts.trust import trust_of
        from tailor.models.own_code import NOTHING

        return trust_of([self.path]) if self._trusts else NOTHING

    def unload(self) -> None:
        """Free the model that `generate()` keeps loaded."""
        self._loaded = None


class Evaluation:
    """The results of a finished evaluation. `results` is the whole `results.json`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        from tailor.runs.evaluations import RESULTS_FILE
        from tailor.store import Store

        self._store = Store(path)
        self.results: dict[str, Any] = RESULTS_FILE.read(self._store, RESULTS)

    def __repr__(self) -> str:
        from tailor.runs.evaluations import one_line

        return f"Evaluation({self.path!r}, {one_line(self.results)})"

    @property
    def path(self) -> str:
        """The folder of the evaluation, as an absolute path or a URL."""
        return self._store.url

    @property
    def figures(self) -> dict[str, float]:
        """The figures of the evaluated model, by name."""
        return self.of(next(iter(self.results["models"])))

    def of(self, model: str) -> dict[str, float]:
        """The figures of one of the compared models, such as `base`."""
        return {entry["figure"]: entry["models"][model]["value"] for entry in self.results["figures"]}

    def rows(self, part: str = "answers") -> list[dict[str, Any]]:
        """The stored rows of a part: `answers`, `facts`, `choices`, `passages` or `lm_eval`. Empty if the evaluation has no
        such part.
        """
        file = f"{part}.jsonl"
        if not self._store.exists(file):
            return []
        from tailor.store.json_files import OBJECT, lines

        return lines(self._store.read_text(file), self._store.url_of(file), OBJECT.adapter)


def _arguments(overrides: Overrides | None) -> list[str]:
    """Overrides in the form of the command line."""
    return [f"{key}={_yaml(_plain(value))}" for key, value in (overrides or {}).items()]


def _yaml(value: Any) -> str:
    """A value as JSON that is also YAML: YAML has no surrogate pairs, but an escape for each character."""

    def character(found: re.Match[str]) -> str:
        text = found[0]
        if text == r"\\":
            return text
        code = ord(json.loads(f'"{text}"'))
        return f"\\U{code:08x}"

    return re.sub(r"\\\\|\\ud[89ab]..\\ud[c-f]..", character, json.dumps(value))


def _plain(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, Path) else value


@contextmanager
def _display(verbose: bool) -> Iterator[Display]:
    if not verbose:
        quiet()
    from tailor.cli.display import Display

    with Display(plain=True) as display:
        yield display
