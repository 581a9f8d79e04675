"""Read the file of another trainer: its arguments by name, with their lines. No code of it is run.

A command line is split as a shell splits it; variables are filled in only from plain assignments in the same file.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

from tailor.errors import Problem, RecipeError
from tailor.spec.moving.draft import Argument
from tailor.spec.moving.sources import MAX_BYTES
from tailor.spec.reading.source import Document, parse, scalar

_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_UNKNOWN = re.compile(r"\$(?:\{?\w+|[@*]|\{[@*][^}]*)\}?")
"""A variable without a known value: after a value, it may have more options."""
_COMPUTED = re.compile(r"\$\([^()]*(?:\([^()]*\)[^()]*)*\)|`[^`]*`")
"""A command whose output is not known here."""
_OPTION = re.compile(r"--?[A-Za-z][\w.-]*(?:=.*)?", re.DOTALL)
_LAUNCHERS = (
    "torchrun",
    "accelerate",
    "deepspeed",
    "python",
    "python3",
    "trl",
    "llamafactory-cli",
    "srun",
    "axolotl",
    "tune",
)
_MAX_COMMAND = 400
"""Lines that one quoted text may have."""


STDIN = "-"


def shown(file: str) -> str:
    """The name of a file in messages. `-` is the standard input."""
    return "the standard input" if file == STDIN else file


def read_file(file: str) -> dict[str, Argument]:
    """The arguments of a file, or of the standard input. Raises RecipeError if it cannot be read."""
    text = _text(file)
    if Path(file).suffix.lower() in (".yaml", ".yml", ".json"):
        return from_document(parse(text, file))
    if Path(file).suffix.lower() in (".sh", ".bash", ".txt", ".md", ".slurm", ".cmd"):
        return from_command(text, file)
    document = parse(text, shown(file))
    if isinstance(document.values, dict) and not document.problems:
        return from_document(document)
    return from_command(text, shown(file))


def from_document(document: Document) -> dict[str, Argument]:
    """The arguments of a YAML or JSON file. `${name}` is filled in from the file's own keys."""
    values = document.values
    if document.problems:
        raise RecipeError(document.problems)
    if not isinstance(values, dict) or not values:
        raise RecipeError(
            [Problem(document.file, 1, 1, "", "has no arguments: it must be a mapping of names to values")]
        )
    plain = {str(name): str(value) for name, value in values.items() if isinstance(value, (str, int, float))}
    found = {}
    for name, value in values.items():
        found[str(name)] = Argument(str(name), _filled(value, plain), document.at_key((name,)).line)
    return found


def flattened(
    arguments: dict[str, Argument], rows: Any, sections: tuple[str, ...] = ()
) -> dict[str, Argument]:
    """Arguments with a row per inner name (`optimizer.lr`) where the table has such rows. sections: names without meaning."""
    found: dict[str, Argument] = {}
    prefixes = {name.split(".")[0] for name in rows if "." in name}
    for argument in arguments.values():
        if isinstance(argument.value, dict) and argument.name in sections:
            found |= {
                str(name): Argument(str(name), value, argument.line) for name, value in argument.value.items()
            }
        elif isinstance(argument.value, dict) and argument.name in prefixes and argument.value:
            for name, value in argument.value.items():
                inner = f"{argument.name}.{name}"
                found[inner] = Argument(inner, value, argument.line)
        else:
            found[argument.name] = argument
    return found


def _text(file: str) -> str:
    try:
        path = Path(file)
        if file == STDIN:
            content = sys.stdin.buffer.read(MAX_BYTES + 1)
        elif path.is_dir():
            raise _error(file, "is a folder; write the file with the arguments")
        elif path.exists() and not path.is_file():  # reading a pipe waits for a writer, maybe for ever
            raise _error(file, "is a pipe or a device; write `tailor import -` to read the standard input")
        else:
            with path.open("rb") as stream:
                content = stream.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise _error(file, f"is larger than {MAX_BYTES} bytes, which is too large for arguments")
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise _error(file, "no such file") from None
    except UnicodeDecodeError:
        raise _error(file, "is not UTF-8; save the file in UTF-8") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _error(file, f"cannot be read: {reason.lower()}") from None


def _error(file: str, message: str) -> RecipeError:
    return RecipeError([Problem(shown(file), 0, 0, "", message)])


def _filled(value: Any, plain: dict[str, str], depth: int = 0) -> Any:
    if isinstance(value, str) and "${" in value and depth < 4:
        done = re.sub(r"\$\{(\w+)\}", lambda match: plain.get(match[1], match[0]), value)
        return _filled(done, plain, depth + 1) if done != value else value
    if isinstance(value, dict):
        return {key: _filled(inner, plain) for key, inner in value.items()}
    return [_filled(inner, plain) for inner in value] if isinstance(value, list) else value


def from_command(text: str, file: str) -> dict[str, Argument]:
    """The arguments of the longest command in a shell script or a page with code blocks."""
    commands = [words for words in _commands(_code(text)) if sum(map(_is_option, words)) >= 2]
    if not commands:
        hint = "write the whole command, with its options `--name value`"
        raise _error(file, f"has no command of a trainer; {hint}")
    best = max(commands, key=lambda words: (_starts_script(words), sum(map(_is_option, words))))
    found = _options(best)
    for before, word in zip(["", *best], best, strict=False):
        script = re.search(
            r"(?:^|[/.])(sft|dpo|kto|orpo|cpo|simpo|grpo|ppo|rloo|reward|online_dpo|nash_md|xpo)(?:_\w+)?\.py$",
            word,
        )
        if script or (before == "trl" and word.isalpha()):
            found.setdefault("trainer", Argument("trainer", script[1] if script else word))
    return found


def _starts_script(words: list[str]) -> bool:
    return any(word in ("-m", "trl") or word.endswith(".py") for word in words)


def _code(text: str) -> str:
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return "\n".join(blocks) if blocks else text


def _commands(text: str) -> list[list[str]]:
    """The commands of a script as words, with variables of plain assignments filled in."""
    variables: dict[str, str] = {}
    found: list[list[str]] = []
    pending: list[str] = []
    for line in text.replace("\\\r\n", " ").replace("\\\n", " ").splitlines():
        pending.append(line)
        try:
            words = shlex.split(_joined("\n".join(pending)), comments=True)
        except ValueError:
            if len(pending) > _MAX_COMMAND:
                pending = []
            continue
        pending = []
        words = [_substituted(word, variables) for word in words]
        while words and words[0] in ("export", "local", "declare", "set"):
            words = words[1:]
        while words and (match := _ASSIGNMENT.fullmatch(words[0])):
            if "$(" not in match[2] and "`" not in match[2]:
                variables[match[1]] = match[2]
            words = words[1:]
        expanded = _split_again(words)
        if expanded:
            found.append(expanded)
    found += [_split_again([value]) for value in variables.values() if value.count("--") >= 2]
    return found


def _joined(line: str) -> str:
    """A line whose `$(commands)` are one word each."""
    return _COMPUTED.sub(lambda match: re.sub(r"[\s\"'#;|&<>]+", "_", match[0]), line)


def _substituted(word: str, variables: dict[str, str]) -> str:
    for _ in range(3):
        done = _VARIABLE.sub(lambda match: variables.get(match[1] or match[2], match[0]), word)
        if done == word or len(done) > MAX_BYTES:
            break
        word = done
    return word


def _split_again(words: list[str]) -> list[str]:
    """Words that are whole commands themselves, as in `bash -c "$LAUNCHER $CMD"`, are split too."""
    found: list[str] = []
    for word in words:
        if "--" in word and re.search(r"\s", word):
            try:
                found += shlex.split(word, comments=True)
                continue
            except ValueError:
                pass
        found.append(word)
    return found


def _is_option(word: str) -> bool:
    return word.startswith("-") and bool(_OPTION.fullmatch(word)) and word not in ("-m", "-c", "-u")


def _options(words: list[str]) -> dict[str, Argument]:
    """`--name value`, `--name value value`, `--name=value` and `--flag`."""
    values: dict[str, list[Any]] = {}
    current: str | None = None
    for at, word in enumerate(words):
        if word in (";", "&&", "||", "|") and current is not None:
            break
        if word in ("-m", "-c"):
            current = None
        elif _is_option(word):
            name, equals, value = word.lstrip("-").partition("=")
            current = name
            values[name] = [scalar(value)] if equals else []
        elif (
            word.endswith(".py")
            or (at and words[at - 1] in ("-m", "-c"))
            or word in _LAUNCHERS
            or re.match(r"^(\d?>|<)", word)
        ):
            current = None
        elif current is not None and not (_UNKNOWN.fullmatch(word) and values[current]):
            values[current].append(scalar(word))
    return {
        name: Argument(name, True if not found else found[0] if len(found) == 1 else found)
        for name, found in values.items()
    }
