"""Every shipped recipe is rehearsed, with stand-ins for its public data and the tokenizer of its base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tailor.spec.load import load_recipe
from tests.encode.families import BUILT_IN
from tests.encode.test_shipped_recipes import NOT_SPECIAL, OWN_TEMPLATES, RECIPES, ROOT
from tests.helpers.public_configs import BASES
from tests.helpers.public_data import PUBLIC_DATA
from tests.helpers.tokenizers import bpe_tokenizer
from tests.rehearse import places

ROWS = 80


def rows(path: str, *, long: int) -> list[str]:
    """Rows with the columns of the public data, all different. long: words that are added to each."""
    sample = [json.dumps(row) for row in PUBLIC_DATA[path].sample]
    more = " ".join(["thread"] * (long + 1))
    return [
        sample[at % len(sample)].replace("needle", f"needle {at}").replace("Needle", f"{more} needle {at}")
        for at in range(ROWS)
    ]


def with_stand_ins(value: Any, folder: Path, long: int) -> Any:
    """Plain values of a recipe in which public data are files."""
    if isinstance(value, list):
        return [with_stand_ins(one, folder, long) for one in value]
    if not isinstance(value, Mapping):
        return value
    made = {key: with_stand_ins(one, folder, long) for key, one in value.items()}
    if value.get("path") in PUBLIC_DATA:
        file = folder / f"rows-{len(list(folder.glob('rows-*')))}.jsonl"
        file.write_text("\n".join(rows(value["path"], long=long)) + "\n")
        made = {key: one for key, one in made.items() if key not in ("split", "subset")} | {"path": str(file)}
    return made


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tags = dict.fromkeys(
        tag for family in BUILT_IN.values() for tag in (*family.tags, family.bos, family.eos)
    )
    return bpe_tokenizer(
        tmp_path_factory.mktemp("tokenizer"), tags=[tag for tag in tags if tag not in NOT_SPECIAL]
    )


def base(model: str, tokenizer: Path, folder: Path) -> str:
    """The folder of a base without weights: its public config, and the tokenizer of the tests."""
    folder.mkdir()
    for file in tokenizer.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    content = json.loads((tokenizer / "tokenizer.json").read_text())
    size = len(content["model"]["vocab"]) + len(content["added_tokens"])
    config = {key: one for key, one in BASES[model][1].items() if not key.endswith("_token_id")}
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": size, "pad_token_id": None}))
    return str(folder)


@pytest.mark.soak
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe(
    path: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(path, check_files=False)
    beacon = recipe.model.beacon
    values = recipe.model_dump(mode="json", exclude_unset=True)
    values = with_stand_ins(values, tmp_path, 2 * beacon.window if beacon is not None else 0)
    values["save"]["to"] = str(tmp_path / "runs/one")
    values["data"].pop("min_length", None)
    values["model"].pop("warm_start", None)
    if recipe.model.path in BASES:
        values["model"] |= {"path": base(recipe.model.path, tokenizer, tmp_path / "base")}
        values["model"].pop("revision", None)
        template = recipe.data.template or OWN_TEMPLATES.get(recipe.model.path)
        if template and recipe.method.name != "pretrain":
            values["data"]["template"] = template
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(values))
    found = places.results(str(file))
    assert {one.check: one.message for one in found.values() if one.status == "failed"} == {}
    assert found["train"].status == found["resume"].status == "ok"
    assert not (tmp_path / "runs").exists()
