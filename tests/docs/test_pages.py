"""What the documents show is true: recipes validate, commands and their options exist, keys are the specs'."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tailor.cli.main import COMMANDS, make_parser
from tailor.errors import RecipeError
from tailor.kube.spec import Cluster
from tailor.spec.evaluation import Evaluation
from tailor.spec.load import judge, load_recipe, read
from tailor.spec.reading import schema_tree
from tailor.spec.reading.source import dotted
from tailor.spec.recipe import Recipe
from tailor.spec.rules import suite
from tests.kube import kuberay

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "cluster" / "README.md",
    ROOT / "docker" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
SECTION = "<!-- section -->"
"""The line before a block that is a part of a recipe. It is judged on top of MINIMAL."""

EVALUATION = "<!-- evaluation -->"
"""The line before a block that is an evaluation file."""

MINIMAL = """\
model: {path: org/model}
data: {train: [{path: "hf://org/rows"}]}
method: {name: sft}
optim: {learning_rate: 1e-4}
save: {to: runs/minimal}
"""
OWN_OPTIONS = ("--help", "--version", "--debug")
KEYS = {
    dotted(place)
    for root in (Recipe, Cluster, Evaluation)
    for places in schema_tree.key_index(root).values()
    for place in places
}
OBJECT = "apiVersion:"
"""How a block begins that is no recipe but Kubernetes'."""
FILE_SUFFIXES = (".json", ".jsonl", ".yaml", ".py", ".md")

_FENCE = re.compile(
    r"(?:^(?P<before>[^\n]*)\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_SPAN = re.compile(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)")


def blocks(text: str, *languages: str) -> Iterator[tuple[int, str, bool]]:
    """(line, content, whether it is a part of a recipe) of every fenced block in one of the languages."""
    for match in _FENCE.finditer(text):
        if match["language"] in languages:
            yield text[: match.start("text")].count("\n") + 1, match["text"], match["before"] == SECTION


def spans(text: str) -> list[str]:
    """The inline code of a document, fenced blocks left out."""
    return [" ".join(span.split()) for span in _SPAN.findall(_FENCE.sub(r"\g<before>\n", text))]


def recipe_problems(block: str, folder: Path, *, section: bool) -> str:
    """What is wrong with a block, or nothing."""
    (folder / "minimal.yaml").write_text(MINIMAL)
    recipe = folder / "recipe.yaml"
    recipe.write_text(f"extends: minimal.yaml\n{block}" if section else block)
    try:
        load_recipe(recipe, check_files=False)
    except RecipeError as error:
        return str(error)
    return ""


def evaluation_problems(block: str, folder: Path) -> str:
    """What is wrong with an evaluation file, but for the files that it names."""
    (folder / "evaluation.yaml").write_text(block)
    try:
        judge(read(folder / "evaluation.yaml", Evaluation), Evaluation, (suite.problems,))
    except RecipeError as error:
        return str(error)
    return ""


def object_problems(block: str) -> list[str]:
    """What Kubernetes would refuse in a block. Of objects of other projects only the head is judged."""
    found = []
    for value in yaml.safe_load_all(block):
        if value["apiVersion"] == "v1":
            found += kuberay.problems(value)
        elif not {"kind", "metadata"} <= value.keys():
            found.append("no kind or no metadata")
    return found


def command_problem(words: list[str], *, whole: bool) -> str:
    """What is wrong with the words after `tailor`, or nothing. `whole`: the parser must take all of them."""
    while words and words[0] in OWN_OPTIONS:
        words = words[1:]
    if not words:
        return ""
    name, *arguments = words
    if name not in COMMANDS:
        return f"{name} is no command"
    parser = make_parser(name, importlib.import_module(COMMANDS[name][0]))
    known = {*OWN_OPTIONS, *(option for action in parser._actions for option in action.option_strings)}
    for word in arguments:
        if word.startswith("-") and word.split("=")[0] not in known:
            return f"{name} has no option {word}"
    if whole and not {"--help", "-h"} & set(arguments):
        try:
            parser.parse_args([word for word in arguments if word != "--debug"])
        except SystemExit:
            return f"{name} does not take these arguments"
    return ""


def tailor_words(line: str) -> list[str] | None:
    """The words after `tailor` in a shell line, up to the end of its command. None where it isn't called."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # prose with an apostrophe in it is no command
        return None
    for at, word in enumerate(words):
        if word.rpartition("/")[2] == "tailor" and (at == 0 or "=" in words[at - 1] or words[at - 1] == "--"):
            rest = words[at + 1 :]
            end = next((i for i, word in enumerate(rest) if word in (">", "|", "&&", ";", "&")), len(rest))
            return rest[:end]
    return None


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_recipes_validate(path: Path, tmp_path: Path) -> None:
    for line, block, section in blocks(path.read_text(), "yaml", "yml"):
        if block.startswith(OBJECT) or f"{EVALUATION}\n```yaml\n{block}" in path.read_text():
            continue
        problems = recipe_problems(block, tmp_path, section=section)
        assert not problems, f"{path.name}, block at line {line}:\n{problems}"


def test_evaluation_files_validate(tmp_path: Path) -> None:
    found = [
        match["text"]
        for path in DOCUMENTS
        for match in _FENCE.finditer(path.read_text())
        if match["before"] == EVALUATION
    ]
    assert found, "the control: there is one"
    assert [evaluation_problems(block, tmp_path) for block in found] == [""] * len(found)
    assert "rogue" in evaluation_problems("tasks: [{name: rogue}]\n", tmp_path)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_objects_are_kubernetes(path: Path) -> None:
    for line, block, _ in blocks(path.read_text(), "yaml", "yml"):
        if block.startswith(OBJECT):
            problems = object_problems(block)
            assert not problems, f"{path.name}, block at line {line}:\n{problems}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_exist(path: Path) -> None:
    text = path.read_text()
    for line, block, _ in blocks(text, "sh", "bash", "console"):
        for command in block.replace("\\\n", " ").splitlines():
            if (words := tailor_words(command)) is not None:
                problem = command_problem(words, whole=True)
                assert not problem, f"{path.name}, block at line {line}: {command}\n{problem}"
    for span in spans(text):
        if (words := tailor_words(span)) is not None:
            problem = command_problem(words, whole=False)
            assert not problem, f"{path.name}: `{span}`: {problem}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_keys_exist(path: Path) -> None:
    sections = {*Recipe.model_fields, *Cluster.model_fields, *Evaluation.model_fields}
    named = re.compile(rf"(?:{'|'.join(sections)})\.[\w.\[\]]+")
    for span in spans(path.read_text()):
        match = named.match(span)
        module = ROOT / "tailor" / f"{match[0].replace('.', '/')}.py" if match else ROOT
        if match and not match[0].endswith(FILE_SUFFIXES) and not module.is_file():
            key = re.sub(r"\[\]|\.\d+\b", ".N", match[0])
            if key.endswith(".NAME"):  # a key that another package registers
                continue
            assert key in KEYS or key.removesuffix(".N") in KEYS, f"{path.name}: `{span}` is no key"


def test_the_pages_show_something() -> None:
    """Control: extraction finds the blocks, sections, commands and spans of all pages together."""
    pages = [path.read_text() for path in DOCUMENTS if path.parent == ROOT / "docs"]
    assert len(pages) > 15
    for page in pages:
        assert page.count("```yaml\n") == len(list(blocks(page, "yaml")))
        assert page.count(f"{SECTION}\n```yaml") == sum(section for _, _, section in blocks(page, "yaml"))
    assert sum(section for page in pages for _, _, section in blocks(page, "yaml")) > 15
    shown = [
        tailor_words(line)
        for page in pages
        for _, block, _ in blocks(page, "sh")
        for line in block.splitlines()
    ]
    named = {words[0] for words in shown if words}
    assert named >= COMMANDS.keys() - {"schema", "runs", "show", "push"}, COMMANDS.keys() - named
    assert "data.on_long" in spans((ROOT / "docs" / "data.md").read_text())
    moving = (ROOT / "docs" / "moving-over.md").read_text()
    assert len(list(blocks(moving, "sh"))) == 1


def test_mistakes_are_seen(tmp_path: Path) -> None:
    """Control: a wrong recipe, section, command or option is found."""
    assert not recipe_problems(MINIMAL, tmp_path, section=False)
    assert "rnak" in recipe_problems("model: {adapter: {rnak: 8}}\n", tmp_path, section=True)
    assert "missing section" in recipe_problems("train: {epochs: 2}\n", tmp_path, section=False)
    assert "model.quantize" in recipe_problems("model: {quantize: {type: nf4}}\n", tmp_path, section=True)
    assert command_problem(["fix", "runs/a"], whole=True) == "fix is no command"
    assert command_problem(["run", "r.yaml", "--fast"], whole=False) == "run has no option --fast"
    assert command_problem(["merge"], whole=True) == "merge does not take these arguments"
    assert not command_problem(["--debug", "run", "r.yaml", "train.epochs=2"], whole=True)
    assert tailor_words("A=1 .venv/bin/tailor schema > x.json  # why") == ["schema"]
    assert tailor_words("ray job submit -- tailor run r.yaml") == ["run", "r.yaml"]
    assert tailor_words("pip install tailor") is None
    claim = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: a}\nspec: {accessMode: [x]}\n"
    assert "accessMode" in object_problems(claim)[0]
    assert object_problems("apiVersion: x.io/v1\nkind: Queue\n") == ["no kind or no metadata"]
    sample = "text\n<!-- section -->\n```yaml\na: 1\n```\n`tailor\nrun x`\n"
    assert list(blocks(sample, "yaml")) == [(4, "a: 1\n", True)]
    assert spans(sample) == ["tailor run x"]
