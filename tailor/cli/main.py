"""The `tailor` command: finds the module of a command, runs it, and prints errors without a traceback."""

from __future__ import annotations

import argparse
import difflib
import importlib
import re
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

from tailor import __version__
from tailor.cli.terminal import guarded
from tailor.errors import RecipeError, StoreError, TailorError
from tailor.imports import uncollected
from tailor.redaction import has_credentials

# Name -> (module, what it does). Modules are imported only when their command is called.
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("tailor.cli.run", "train a recipe: prepare data, train, verify, save the artifacts"),
    "validate": ("tailor.cli.validate", "check recipes without running them"),
    "plan": ("tailor.cli.plan", "show what a run would do on this machine: batches, steps, strategy, memory"),
    "rehearse": (
        "tailor.cli.rehearse",
        "run a whole recipe in small on the CPU, with a tiny random model and the first rows",
    ),
    "data": (
        "tailor.cli.data",
        "show statistics of the training data, rows with their supervised tokens, or faults",
    ),
    "evaluate": ("tailor.cli.evaluate", "evaluate a trained model and compare it with its base"),
    "chat": ("tailor.cli.chat", "chat with a trained model"),
    "generate": ("tailor.cli.generate", "generate answers to prompts with a trained model"),
    "serve": ("tailor.cli.serve", "serve trained models over HTTP, with the interface of OpenAI"),
    "embed": ("tailor.cli.embed", "compute embeddings of a file's texts with a trained model"),
    "search": ("tailor.cli.search", "search a file's texts with a trained model that makes embeddings"),
    "mine": (
        "tailor.cli.mine",
        "add hard negatives to rows of queries, by a trained model, BM25 or at random",
    ),
    "score": ("tailor.cli.score", "add a teacher's scores to the passages of rows, for distillation"),
    "merge": ("tailor.cli.merge", "merge an adapter into its base model"),
    "average": ("tailor.cli.average", "average the weights of models, checkpoints or adapters"),
    "export": (
        "tailor.cli.export",
        "export a model to a folder for Hugging Face, sentence-transformers, llama.cpp or Ollama, with a model card",
    ),
    "push": ("tailor.cli.push", "upload a run's adapter or model to the Hugging Face hub"),
    "runs": ("tailor.cli.runs", "list the runs in a folder"),
    "show": ("tailor.cli.show", "show the settings, results and loss curve of a run"),
    "submit": ("tailor.cli.submit", "run a recipe as a job on a Ray cluster, and follow its log"),
    "jobs": ("tailor.cli.jobs", "list, follow or stop jobs of a Ray cluster"),
    "manifest": ("tailor.cli.manifest", "write a Kubernetes manifest (RayJob or RayCluster) for a recipe"),
    "doctor": ("tailor.cli.doctor", "check this machine and what a recipe needs of it"),
    "init": ("tailor.cli.init", "write a starter recipe to edit"),
    "import": ("tailor.cli.import_", "write a recipe from the configuration of another trainer"),
    "schema": (
        "tailor.cli.schema",
        "print the JSON Schema or the reference of recipes, cluster files or evaluation files",
    ),
}

_OTHER_NAMES = {
    **dict.fromkeys(("train", "sft", "finetune", "fine-tune", "fit", "dpo", "kto", "start", "resume"), "run"),
    **dict.fromkeys(("eval", "test", "benchmark", "score"), "evaluate"),
    **dict.fromkeys(("infer", "inference", "predict", "complete"), "generate"),
    **dict.fromkeys(("deploy", "server", "api"), "serve"),
    **dict.fromkeys(("convert", "gguf"), "export"),
    **dict.fromkeys(("check", "lint"), "validate"),
    **dict.fromkeys(("new", "create"), "init"),
    **dict.fromkeys(("migrate", "from"), "import"),
    **dict.fromkeys(("encode", "embeddings"), "embed"),
    **dict.fromkeys(("list", "ls", "ps"), "runs"),
    **dict.fromkeys(("preprocess", "prepare", "tokenize"), "data"),
    **dict.fromkeys(("upload",), "push"),
    **dict.fromkeys(("estimate", "memory", "forecast"), "plan"),
}
"""What other tools call a command."""
_OPTION = re.compile(r"--?([A-Za-z][\w.-]*)(?:=(.*))?", re.DOTALL)
_URL = re.compile(r"(?:--[a-z-]+=)?[a-z][a-z0-9+.-]*://\S+", re.I)
INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED = 130  # 128 + SIGINT
TERMINATED = 143  # 128 + SIGTERM


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Exceptions become messages, unless `--debug` is given."""
    with guarded():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
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
        print(f"tailor: {name}: unknown {_kind_of_argument(name)}{_suggestion(name)}", file=sys.stderr)
        print("  hint: `tailor --help` lists the commands", file=sys.stderr)
        return 2
    if any(_is_url_with_credentials(argument) for argument in rest[1:]):
        print(
            "tailor: an argument is a URL with credentials, which other users of this machine can see",
            file=sys.stderr,
        )
        print("  hint: remove them and put secrets into the environment (HF_TOKEN, AWS_…)", file=sys.stderr)
        return 2
    try:
        with uncollected():
            command = importlib.import_module(COMMANDS[name][0])
        args = make_parser(name, command, rest[1:]).parse_intermixed_args(rest[1:])
        output = getattr(command, "OUTPUT", None)
        if output is not None and args.json:
            return int(output.run(partial(_execute, command), args))
        return _execute(command, args)
    except SystemExit as stop:  # argparse raises it for --help and usage errors
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
        return report(error)


def _execute(command: Any, args: argparse.Namespace) -> int:
    """Run a command. StoreError for a full disk wherever the command does not report it itself."""
    try:
        return int(command.execute(args))
    except Exception as error:
        from tailor.store.failures import is_full

        if not is_full(error):
            raise
        reason = " ".join(str(error).split())
        raise StoreError(
            f"a file cannot be written: {reason}", hint="free some space, then run the same command again"
        ) from error


def make_parser(name: str, command: Any, words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser of a command's arguments. command: its module. words: the arguments."""
    _, purpose = COMMANDS[name]
    parser = argparse.ArgumentParser(
        prog=f"tailor {name}", description=f"{purpose[0].upper()}{purpose[1:]}.", allow_abbrev=False
    )
    command.configure(parser)
    if hasattr(command, "OUTPUT"):
        command.OUTPUT.configure(parser, words)
    usage_error = parser.error

    def error(message: str) -> NoReturn:
        usage_error(f"{message}{_override(words)}" if message.startswith("unrecognized") else message)

    parser.error = error  # type: ignore[method-assign]
    return parser


def _override(words: Sequence[str]) -> str:
    """A hint for a key of a recipe that is written as an option: `--optim.lr 1e-3`."""
    from tailor.spec.reading.schema_tree import key_index
    from tailor.spec.recipe import Recipe

    for word, after in zip(words, [*words[1:], ""], strict=True):
        match = _OPTION.fullmatch(word)
        if match is None:
            continue
        name, value = match[1].replace("-", "_"), match[2] or ("VALUE" if after.startswith("--") else after)
        paths = key_index(Recipe).get(name.rsplit(".", 1)[-1], ())
        exact = [
            ".".join(path)
            for path in paths
            if "N" not in path and (".".join(path) == name or "." not in name)
        ]
        known = Recipe.aliases.get(name.rsplit(".", 1)[-1], "")
        key = exact[0] if len(exact) == 1 else known if not exact else ""
        if key and "N" not in key.split("."):
            return f"; a key of a recipe has no dashes: write {key}={value or 'VALUE'}"
    return ""


def entry() -> None:
    """Entry point of the console script `tailor`."""
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
        "`tailor COMMAND --help` shows the options of a command; `--debug` shows tracebacks.",
    ]
    return "\n".join(lines)


def _own_options(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split the arguments into the options before the command, and the rest."""
    aliases = {"-h": "--help", "-V": "--version"}
    index = 0
    while index < len(arguments) and aliases.get(arguments[index], arguments[index]) in (
        "--help",
        "--version",
        "--debug",
    ):
        index += 1
    return [aliases.get(argument, argument) for argument in arguments[:index]], arguments[index:]


def _kind_of_argument(name: str) -> str:
    return "option" if name.startswith("-") else "command"


def _suggestion(name: str) -> str:
    matches = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.7)
    found = _OTHER_NAMES.get(name) or (matches[0] if matches else "")
    return f"; did you mean {found}?" if found else ""


def _is_url_with_credentials(argument: str) -> bool:
    """Whether a whole argument is one. Prompts may speak of such URLs, and recipe keys have their own message."""
    return bool(_URL.fullmatch(argument)) and has_credentials(argument)


def report(error: Exception) -> int:
    """Print an error without its traceback, and return its exit code."""
    if isinstance(error, RecipeError):
        print(error.message, file=sys.stderr)
        return error.exit_code
    if isinstance(error, TailorError):
        print(f"tailor: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    print(f"tailor: {internal_error(error)}; run again with --debug for the traceback", file=sys.stderr)
    return INTERNAL_ERROR


def internal_error(error: BaseException) -> str:
    """The message of an error that is no TailorError, in one line."""
    return f"internal error: {type(error).__name__}: {' '.join(str(error).split())}"
