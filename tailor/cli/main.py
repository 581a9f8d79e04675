"""The `tailor` command: finds the command's module, runs it, and turns errors into plain lines."""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from collections.abc import Sequence

from tailor import __version__
from tailor.errors import RecipeError, TailorError

# Name -> (module, what it does). Modules are imported only when their command is called.
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("tailor.cli.run", "prepare, train, prove and write the artifacts"),
    "validate": ("tailor.cli.validate", "check recipes"),
    "plan": ("tailor.cli.plan", "show every number that a run derives on this machine"),
    "data": ("tailor.cli.data", "report on the data, or show the supervised tokens"),
    "evaluate": ("tailor.cli.evaluate", "measure a trained model beside its base"),
    "chat": ("tailor.cli.chat", "talk to a trained model"),
    "generate": ("tailor.cli.generate", "answer prompts with a trained model"),
    "embed": ("tailor.cli.embed", "turn texts into embeddings with a trained model"),
    "merge": ("tailor.cli.merge", "put an adapter into its base"),
    "average": ("tailor.cli.average", "average models, checkpoints or adapters"),
    "export": (
        "tailor.cli.export",
        "write a folder for Hugging Face, sentence-transformers or Ollama, with a model card",
    ),
    "push": ("tailor.cli.push", "upload what a run made to the Hugging Face hub"),
    "runs": ("tailor.cli.runs", "list runs"),
    "show": ("tailor.cli.show", "show a run"),
    "submit": ("tailor.cli.submit", "run a recipe as a job on a Ray cluster, and follow it"),
    "jobs": ("tailor.cli.jobs", "list, follow or stop the jobs of a Ray cluster"),
    "manifest": ("tailor.cli.manifest", "write a recipe as a RayJob or RayCluster for Kubernetes"),
    "init": ("tailor.cli.init", "write a first recipe to edit"),
    "schema": (
        "tailor.cli.schema",
        "print the JSON Schema of a recipe, a cluster file or an evaluation file",
    ),
}

INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED = 130  # 128 + SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; no exception leaves it but with `--debug`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options, rest = _own_options(arguments)
    debug = "--debug" in options or "--debug" in rest
    rest = [argument for argument in rest if argument != "--debug"]
    if "--version" in options:
        print(f"tailor {__version__}")
        return 0
    if "--help" in options or not rest:
        print(usage())
        return 0
    name = rest[0]
    if name not in COMMANDS:
        print(f"tailor: {name}: unknown {_kind(name)}{_near(name)}", file=sys.stderr)
        print("  hint: `tailor --help` lists the commands", file=sys.stderr)
        return 2
    module_name, purpose = COMMANDS[name]
    try:
        command = importlib.import_module(module_name)
        parser = argparse.ArgumentParser(
            prog=f"tailor {name}", description=f"{purpose[0].upper()}{purpose[1:]}.", allow_abbrev=False
        )
        command.configure(parser)
        return int(command.execute(parser.parse_intermixed_args(rest[1:])))
    except SystemExit as stop:  # argparse ends with it
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        if debug:
            raise
        print("tailor: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `tailor ... | head`
        sys.stderr.close()
        return 0
    except Exception as error:
        if debug:
            raise
        return _report(error)


def entry() -> None:
    """The console script."""
    sys.exit(main())


def usage() -> str:
    """The text of `tailor --help`."""
    lines = [
        "usage: tailor [--version] [--help] [--debug] COMMAND ...",
        "",
        "Declarative fine-tuning recipes on Ray.",
        "",
        "commands:",
        *(f"  {name:<10}{purpose}" for name, (_, purpose) in COMMANDS.items()),
        "",
        "`tailor COMMAND --help` explains a command; `--debug` shows tracebacks.",
    ]
    return "\n".join(lines)


def _own_options(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Splits the options before the command from the rest."""
    aliases = {"-h": "--help", "-V": "--version"}
    count = 0
    while count < len(arguments) and aliases.get(arguments[count], arguments[count]) in (
        "--help",
        "--version",
        "--debug",
    ):
        count += 1
    return [aliases.get(argument, argument) for argument in arguments[:count]], arguments[count:]


def _kind(name: str) -> str:
    return "option" if name.startswith("-") else "command"


def _near(name: str) -> str:
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _report(error: Exception) -> int:
    if isinstance(error, RecipeError):
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return error.exit_code
    if isinstance(error, TailorError):
        print(f"tailor: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    text = " ".join(str(error).split())
    kind = type(error).__name__
    print(
        f"tailor: internal error: {kind}: {text}; run again with --debug for the traceback", file=sys.stderr
    )
    return INTERNAL_ERROR
