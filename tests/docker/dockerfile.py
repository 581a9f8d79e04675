"""A Dockerfile's instructions, and rules of images that are built again and run as nobody special."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SECRET = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|KEY|CREDENTIALS?)($|_)", re.IGNORECASE)
_NAME = re.compile(r"\$\{?(\w+)\}?")


@dataclass(frozen=True)
class Instruction:
    line: int
    name: str
    text: str


@dataclass
class Stage:
    base: str
    name: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, name: str) -> Iterator[Instruction]:
        return (instruction for instruction in self.instructions if instruction.name == name)


def instructions(text: str) -> list[Instruction]:
    """Comments left out, lines that end with a backslash joined."""
    found, parts, start = [], [], 0
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("#") or not (line.strip() or parts):
            continue
        start = start if parts else number
        parts.append(line.strip().removesuffix("\\").strip())
        if not line.rstrip().endswith("\\"):
            name, _, rest = " ".join(parts).partition(" ")
            found.append(Instruction(start, name.upper(), rest.strip()))
            parts = []
    return found


def stages(text: str) -> list[Stage]:
    """The stages, with the defaults of the first ARGs put into their bases."""
    defaults: dict[str, str] = {}
    found: list[Stage] = []
    for instruction in instructions(text):
        if instruction.name == "FROM":
            base, _, name = re.sub(r"^--platform=\S+ ", "", instruction.text).partition(" AS ")
            base = _NAME.sub(lambda match: defaults.get(match[1], ""), base)
            found.append(Stage(base.strip(), name.strip()))
        elif found:
            found[-1].instructions.append(instruction)
        elif instruction.name == "ARG":
            key, _, value = instruction.text.partition("=")
            defaults[key] = value
    return found


def problems(text: str, root: Path) -> list[str]:
    """What is wrong with a Dockerfile that is built from `root`."""
    found = [*_bases(stages(text)), *_user(stages(text))]
    for stage in stages(text):
        found += [*_apt(stage), *_pip(stage), *_copy(stage, text, root), *_variables(stage), *_start(stage)]
    return found


def _bases(found: list[Stage]) -> Iterator[str]:
    if len(found) < 2:
        yield "one stage: what builds the image stays in it"
    names: set[str] = set()
    for stage in found:
        tag = stage.base.rpartition("/")[2].partition(":")[2]
        if stage.base not in names and "@sha256:" not in stage.base and not re.search(r"\d", tag):
            yield f"{stage.base}: a base without a version"
        names.add(stage.name)


def _user(found: list[Stage]) -> Iterator[str]:
    users = [instruction.text for instruction in found[-1].all("USER")]
    # By number, or Kubernetes cannot know that it isn't root.
    if not users or not users[-1].partition(":")[0].isdecimal() or int(users[-1].partition(":")[0]) == 0:
        yield "the last USER is no number over 0"
    elif found[-1].instructions[-1].name != "USER":
        yield "USER is not the last instruction"


def _apt(stage: Stage) -> Iterator[str]:
    for instruction in stage.all("RUN"):
        text = instruction.text
        if "apt-get install" in text or "apt install" in text:
            for needed in ("apt-get update", "--no-install-recommends", "rm -rf /var/lib/apt/lists/*"):
                if needed not in text:
                    yield f"line {instruction.line}: no `{needed}` in the layer that installs"
        elif "apt-get update" in text:
            yield f"line {instruction.line}: `apt-get update` in a layer of its own is cached for ever"
        if re.search(r"\bsudo\b|apt-get (dist-)?upgrade|curl[^|]*\|", text):
            yield f"line {instruction.line}: sudo, an upgrade, or a script from the net"


def _pip(stage: Stage) -> Iterator[str]:
    cached = not any("PIP_NO_CACHE_DIR=1" in instruction.text for instruction in stage.all("ENV"))
    for instruction in stage.all("RUN"):
        for call in re.findall(r"pip3? install(.*?)(?=&&|;|$)", instruction.text):
            if "-c constraints.txt" not in call:
                yield f"line {instruction.line}: pip installs without constraints.txt"
            if cached and "--no-cache-dir" not in call:
                yield f"line {instruction.line}: pip's cache stays in the layer"


def _copy(stage: Stage, text: str, root: Path) -> Iterator[str]:
    for instruction in stage.all("ADD"):
        yield f"line {instruction.line}: ADD; COPY does nothing by itself"
    names = {other.name for other in stages(text)}
    for instruction in stage.all("COPY"):
        words = shlex.split(instruction.text)
        origin = next((word[len("--from=") :] for word in words if word.startswith("--from=")), None)
        *sources, _ = [word for word in words if not word.startswith("--")]
        if origin is not None:
            if origin not in names:
                yield f"line {instruction.line}: no stage {origin}"
            continue
        for source in sources:
            if not (root / source).exists():
                yield f"line {instruction.line}: {source} is not in the tree"
            elif ignored(source, (root / ".dockerignore").read_text()):
                yield f"line {instruction.line}: {source} is left out by .dockerignore"


def _variables(stage: Stage) -> Iterator[str]:
    for instruction in (*stage.all("ARG"), *stage.all("ENV")):
        for name in re.findall(r"(?:^|\s)(\w+)(?==|$)", instruction.text):
            if SECRET.search(name):
                yield f"line {instruction.line}: {name} stays in the image's history"


def _start(stage: Stage) -> Iterator[str]:
    for instruction in (*stage.all("ENTRYPOINT"), *stage.all("CMD")):
        try:
            words = json.loads(instruction.text)
        except ValueError:
            words = None
        if not isinstance(words, list):
            yield f"line {instruction.line}: {instruction.name} through a shell, which keeps signals to itself"


def ignored(path: str, rules: str) -> bool:
    """Whether a file of the context is left out: the last rule that fits it or a folder above it counts."""
    parts = path.split("/")
    above = ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
    out = False
    for rule in rules.splitlines():
        pattern = rule.removeprefix("!")
        names = parts if pattern.startswith("**/") else above
        pattern = pattern.removeprefix("**/")
        if pattern and not rule.startswith("#") and any(fnmatch.fnmatchcase(name, pattern) for name in names):
            out = not rule.startswith("!")
    return out
