"""Every argument of the examples of other trainers gets an answer, and the recipes have their values and validate."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tailor.encode.template import load_template
from tailor.errors import RecipeError
from tailor.spec.moving.draft import Argument, number
from tailor.spec.moving.importing import Imported, convert, recognize
from tailor.spec.reading.source import parse
from tailor.spec.trainers.registry import IMPORTED
from tailor.spec.trainers.values import FIREFLY_TEMPLATES
from tests.spec.trainers import upstream

Result = dict[str, "Imported | RecipeError"]
TARGETS = ("firefly", "llama-factory", "axolotl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder: files of data and models are not in it."""
    return tmp_path_factory.mktemp("upstream")


@pytest.fixture(scope="module")
def results(folder: Path) -> Result:
    """Example -> its recipe, or why there is none."""
    found: Result = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for example in upstream.examples():
            found[example] = imported(example)
    return found


def imported(example: str, **changes: Any) -> Imported | RecipeError:
    arguments = upstream.arguments(example)
    arguments |= {name: Argument(name, value) for name, value in changes.items()}
    try:
        return convert(arguments, IMPORTED[example.split("/")[0]], example, "recipe.yaml")
    except RecipeError as error:
        return error


def left(result: Imported) -> list[str]:
    """What a recipe does not validate for, apart from files and folders that are on another machine."""
    return [
        f"{problem.key}: {problem.message}"
        for problem in result.problems
        if "no such file" not in problem.message
        and "neither a folder nor a hub model id" not in problem.message
    ]


def test_every_example_is_recognized() -> None:
    wrong = {
        example: found.name
        for example in upstream.examples()
        if (found := recognize(upstream.arguments(example), example)).name != example.split("/")[0]
    }
    assert not wrong


def test_every_argument_is_answered(results: Result) -> None:
    for example, result in results.items():
        if isinstance(result, RecipeError):
            assert all(problem.message and problem.key for problem in result.problems), example
            continue
        names = {answer.argument.name for answer in result.answers}
        inside = {name.split(".")[0] for name in names}
        sections = {"data", "training", "lora", "logging"} if example.startswith("unsloth/") else set()
        assert set(upstream.arguments(example)) - sections <= names | inside
        for answer in result.answers:
            assert answer.outcome in ("taken", "unneeded", "unsupported"), (example, answer)
            assert answer.keys if answer.outcome == "taken" else answer.text, (example, answer)
            if answer.outcome != "taken":
                assert answer.argument.shown in result.recipe, (example, answer)


def test_an_argument_that_no_table_has_is_named() -> None:
    """Control of the test above."""
    result = imported("firefly/sft/qlora/llama2-7b-sft-qlora", frobnicate=3)
    assert isinstance(result, Imported)
    assert [answer.argument.name for answer in result.answers if answer.outcome == "unknown"] == [
        "frobnicate"
    ]
    assert "frobnicate: 3" in result.recipe.split("# Unknown:")[1]


@pytest.mark.parametrize("trainer", TARGETS)
def test_examples_become_recipes_that_validate(trainer: str, results: Result) -> None:
    """Of the examples that train text models by a method that exists, at least 95 % validate."""
    mine = {name: result for name, result in results.items() if name.startswith(f"{trainer}/")}
    recipes = {name: result for name, result in mine.items() if isinstance(result, Imported)}
    invalid = {name: problems for name, result in recipes.items() if (problems := left(result))}
    assert len(invalid) <= 0.05 * len(recipes), invalid
    assert len(recipes) >= {"firefly": 65, "llama-factory": 58, "axolotl": 202}[trainer]


CATEGORIES = {
    "firefly": {"sft": (48, 48), "dpo": (9, 9), "pretrain": (8, 8)},
    "llama-factory": {"sft": (54, 57), "dpo": (1, 1), "kto": (1, 1), "pretrain": (1, 1)},
    "axolotl": {"sft": (193, 196), "dpo": (7, 7), "kto": (1, 1), "orpo": (1, 1)},
}
"""Trainer -> category -> (examples that become recipes that validate, all)."""
_IMAGE_DATA = ("mllm", "llava", "rlhf_v", "multimodal")


def category(example: str) -> str | None:
    """The category of an example, from its own arguments; None for images, reward models, online training and exports."""
    given = {name: argument.value for name, argument in upstream.arguments(example).items()}
    datasets = str(given.get("dataset") or given.get("train_dataset") or "")
    if given.get("processor_type") or any(part in datasets for part in _IMAGE_DATA):
        return None
    if any(given.get(name) for name in ("reward_model", "process_reward_model", "diffusion", "trl")):
        return None
    if isinstance(given.get("peft_config"), dict) and given["peft_config"].get("export_dir"):
        return None
    method = str(given.get("stage") or given.get("task_type") or given.get("rl") or "sft")
    found = {"pt": "pretrain"}.get(method, method)
    return found if found in ("sft", "pretrain", "dpo", "kto", "orpo", "ipo", "simpo") else None


@pytest.mark.parametrize("trainer", TARGETS)
def test_nearly_all_text_examples_become_recipes(trainer: str, results: Result) -> None:
    """At least 95 % of the SFT, pretraining, DPO and KTO examples of text models, counted by category."""
    counts: Counter[tuple[str, bool]] = Counter()
    for example, result in results.items():
        if example.startswith(f"{trainer}/") and (kind := category(example)) is not None:
            counts[kind, isinstance(result, Imported) and not left(result)] += 1
    kinds = {kind for kind, _ in counts}
    found = {kind: (counts[kind, True], counts[kind, True] + counts[kind, False]) for kind in kinds}
    assert found == CATEGORIES[trainer]
    assert sum(good for good, _ in found.values()) >= 0.95 * sum(total for _, total in found.values())


def test_muon_is_not_given_up_for_a_strategy(results: Result) -> None:
    """Another optimizer is another training, a strategy only needs other memory. Version 1 has no adapter by default."""
    result = results["llama-factory/v1/train_full/train_full_muon"]
    assert isinstance(result, Imported)
    document = parse(result.recipe, "muon")
    assert document.get(("optim", "optimizer")) == "muon"
    assert document.get(("scale", "strategy")) is None
    assert document.get(("model", "adapter")) is None
    assert 'dist_config: {"name": "fsdp2"}  -> optim.optimizer' in result.recipe
    lora = results["llama-factory/v1/train_lora/train_lora_sft"]
    assert isinstance(lora, Imported)
    assert parse(lora.recipe, "lora").get(("model", "adapter", "rank"))  # the control


def test_counts(results: Result) -> None:
    """How many examples are imported, left with something to fill in, and refused with a reason."""
    counts: Counter[tuple[str, str]] = Counter()
    for example, result in results.items():
        kind = "refused" if isinstance(result, RecipeError) else "left" if left(result) else "imported"
        counts[example.split("/")[0], kind] += 1
    assert dict(counts) == COUNTS


COUNTS: dict[tuple[str, str], int] = {
    ("firefly", "imported"): 65,
    ("llama-factory", "imported"): 58,
    ("llama-factory", "refused"): 14,
    ("axolotl", "imported"): 202,
    ("axolotl", "refused"): 47,
    ("axolotl", "left"): 1,
    ("torchtune", "imported"): 79,
    ("torchtune", "refused"): 4,
    ("unsloth", "imported"): 2,
    ("trl", "imported"): 26,
    ("gritlm", "imported"): 6,
    ("gritlm", "left"): 2,
    ("trl", "refused"): 27,
    ("trl", "left"): 1,
    ("long-llm", "imported"): 5,
}

REFUSED = {
    "axolotl": {"processor_type", "datasets", "gptq", "diffusion", "llmcompressor", "trl", "rl", "reward_model",
                "center_rewards_coefficient", "process_reward_model"},
    "llama-factory": {"dataset", "finetuning_type", "mixture_of_depths", "stage", "peft_config"},
}  # fmt: skip


def test_refusals_are_for_what_no_recipe_can_say(results: Result) -> None:
    for example, result in results.items():
        trainer = example.split("/")[0]
        if isinstance(result, RecipeError) and trainer in REFUSED:
            assert any(problem.key.split(":")[0] in REFUSED[trainer] for problem in result.problems), (
                example,
                result,
            )


PLAIN = {
    "learning_rate": "optim.learning_rate",
    "optimizer.lr": "optim.learning_rate",
    "max_seq_length": "data.max_length",
    "cutoff_len": "data.max_length",
    "sequence_len": "data.max_length",
    "lora_rank": "model.adapter.rank",
    "lora_r": "model.adapter.rank",
    "lora_alpha": "model.adapter.alpha",
    "lora_dropout": "model.adapter.dropout",
    "weight_decay": "optim.weight_decay",
    "max_grad_norm": "optim.max_grad_norm",
    "warmup_ratio": "optim.warmup_ratio",
    "num_train_epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "seed": "train.seed",
    "beta": "method.beta",
    "pref_beta": "method.beta",
    "rl_beta": "method.beta",
    "max_prompt_length": "method.max_prompt_length",
    "temperature": "method.temperature",
    "train_group_size": "method.group_size",
    "query_max_len": "method.max_query_length",
    "passage_max_len": "method.max_passage_length",
    "beacon_window": "model.beacon.window",
    "min_length": "data.min_length",
}
"""Arguments whose value is that of the key, written down without the tables."""
NAMES = {
    "optim": ("optim.optimizer", {"paged_adamw_32bit": "paged_adamw", "adamw_hf": "adamw", "paged_adamw_8bit": "paged_adamw_8bit"}),
    "optimizer": ("optim.optimizer", {"adamw_bnb_8bit": "adamw_8bit", "adamw_torch_fused": "adamw", "adamw_torch_8bit": "adamw_8bit",
                                      "paged_adamw_8bit": "paged_adamw_8bit", "paged_adamw_32bit": "paged_adamw", "adamw_torch": "adamw"}),
    "lr_scheduler_type": ("optim.schedule", {"cosine": "cosine", "constant_with_warmup": "constant_with_warmup", "linear": "linear"}),
    "lr_scheduler": ("optim.schedule", {"cosine": "cosine", "linear": "linear"}),
    "sample_packing": ("data.pack", {"true": True, "false": False}),
    "packing": ("data.pack", {"true": True, "false": False}),
    "stage": ("method.name", {"sft": "sft", "pt": "pretrain", "dpo": "dpo", "kto": "kto"}),
    "task_type": ("method.name", {"sft": "sft", "pretrain": "pretrain", "dpo": "dpo"}),
    "mode": ("method.mode", {"unified": "unified", "embedding": "embedding", "generative": "generative"}),
    "load_in_8bit": ("model.quantize.type", {"true": "int8"}),
    "load_in_4bit": ("model.quantize.type", {"true": "nf4"}),
}  # fmt: skip
"""Arguments whose values have other names: value there -> value in the recipe."""


def wrong(example: str, result: Imported) -> list[str]:
    """The arguments of an example whose value in the recipe is another one."""
    document = parse(result.recipe, example)
    assert not document.problems, (example, document.problems)
    dropped = {answer.argument.name for answer in result.answers if not answer.keys}
    found = []
    for name, argument in upstream.arguments(example).items():
        if name in dropped or argument.value is None:
            continue
        if name in PLAIN and number(argument.value) is not None:
            value = document.get(tuple(PLAIN[name].split(".")))
            if value is None or float(value) != float(number(argument.value) or 0):
                found.append(f"{name}: {argument.value} is {value}")
        elif name in NAMES and (expected := NAMES[name][1].get(str(argument.value).lower())) is not None:
            value = document.get(tuple(NAMES[name][0].split(".")))
            if value != expected:
                found.append(f"{name}: {argument.value} is {value}")
    return found


def test_no_value_is_taken_over_wrongly(results: Result) -> None:
    for example, result in results.items():
        if isinstance(result, Imported):
            assert not wrong(example, result), example


@pytest.mark.parametrize("name", FIREFLY_TEMPLATES)
def test_templates_of_firefly_keep_their_names(name: str) -> None:
    result = imported("firefly/sft/qlora/llama2-7b-sft-qlora", template_name=name)
    assert isinstance(result, Imported)
    assert parse(result.recipe, "recipe").get(("data", "template")) == name
    assert load_template(name).has_markers


def test_wrong_values_are_seen() -> None:
    """Control: a recipe of other arguments has other values."""
    example = "firefly/sft/qlora/llama2-7b-sft-qlora"
    result = imported(example, learning_rate=3e-3, optim="sgd")
    assert isinstance(result, Imported)
    assert wrong(example, result) == ["learning_rate: 0.0001 is 0.003", "optim: paged_adamw_32bit is sgd"]


def test_the_batch_is_global(results: Result) -> None:
    for example, result in results.items():
        given = {name: argument.value for name, argument in upstream.arguments(example).items()}
        if isinstance(result, RecipeError) or example.startswith(("gritlm/", "torchtune/", "unsloth/")):
            continue
        per_device = given.get("per_device_train_batch_size", given.get("micro_batch_size"))
        if per_device is None or {"global_batch_size", "batch_size"} & given.keys():
            continue
        document = parse(result.recipe, example)
        workers = document.get(("scale", "workers"), 1) // document.get(("scale", "sequence_parallel"), 1)
        assert (
            document.get(("train", "batch_size"))
            == per_device * (given.get("gradient_accumulation_steps") or 1) * workers
        ), example
