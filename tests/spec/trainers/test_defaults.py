"""What a file leaves out has the value that its trainer gives it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tailor.spec.load import load_recipe
from tailor.spec.moving.importing import Imported, import_file

HEAD = {
    "axolotl": "base_model: a/b\nsequence_len: 64\nlearning_rate: 1e-4\ndatasets: [{path: a/c, type: alpaca}]\n",
    "trl": "model_name_or_path: a/b\ndataset_name: a/c\n",
    "sft-script": "model_name: a/b\ndataset_name: a/c\nseq_length: 64\n",
    "llama-factory": "model_name_or_path: a/b\ndataset: identity\nfinetuning_type: lora\n",
    "unsloth": "model: a/b\ndata: {dataset: a/c}\ntraining: {max_seq_length: 64}\n",
    "torchtune": "checkpointer: {checkpoint_dir: a/b}\nmetric_logger: {}\n"
    "model: {_component_: torchtune.models.llama3.llama3_8b}\n"
    "dataset: {_component_: torchtune.datasets.alpaca_dataset}\n",
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def imported(trainer: str, text: str) -> Imported:
    Path("file.yaml").write_text(HEAD[trainer] + text)
    return import_file("file.yaml", trainer)


def recipe(trainer: str, text: str) -> Any:
    Path("recipe.yaml").write_text(imported(trainer, text).recipe)
    return load_recipe("recipe.yaml", check_files=False)


@pytest.mark.parametrize(
    ("trainer", "without", "with_it"),
    [
        ("axolotl", "lora_r: 8\nlora_alpha: 16\nadapter:\n", "lora_r: 8\nadapter: lora\n"),
        ("trl", "lora_r: 8\n", "lora_r: 8\nuse_peft: true\n"),
        ("sft-script", "peft_lora_r: 8\n", "peft_lora_r: 8\nuse_peft: true\n"),
    ],
)
def test_arguments_of_lora_alone_are_no_adapter(trainer: str, without: str, with_it: str) -> None:
    assert recipe(trainer, without).model.adapter is None
    adapter = recipe(trainer, with_it).model.adapter
    assert (adapter.rank, adapter.target_modules) == (8, ["q_proj", "v_proj"])  # those of PEFT
    targets = "lora_target_modules: [o_proj]\n"
    assert recipe(trainer, with_it + targets).model.adapter.target_modules == ["o_proj"]


def test_torchtune_has_a_constant_rate_decays_weights_and_learns_alpaca_prompts() -> None:
    adamw = "optimizer: {_component_: torch.optim.AdamW, lr: 2e-5%s}\n"
    plain = recipe("torchtune", adamw % "")
    assert (plain.optim.schedule, plain.optim.weight_decay) == ("constant", 0.01)
    assert plain.method.train_on == "everything"
    cosine = "lr_scheduler: {_component_: torchtune.modules.get_cosine_schedule_with_warmup}\n"
    given = recipe("torchtune", adamw % ", weight_decay: 0" + cosine)
    assert (given.optim.schedule, given.optim.weight_decay) == ("cosine", 0.0)
    sgd = recipe("torchtune", "optimizer: {_component_: torch.optim.SGD, lr: 2e-5}\n")
    assert sgd.optim.weight_decay == 0


def test_llama_factory_packs_pretraining_and_nothing_else() -> None:
    def packing(text: str) -> tuple[bool, bool]:
        recipe = imported("llama-factory", text).recipe
        return "  pack: false" not in recipe, "documents: isolate" in recipe

    assert packing("stage: pt\n") == (True, False)
    assert packing("stage: sft\n") == (False, False)
    assert packing("stage: pt\npacking: false\n") == (False, True)


def test_unsloth_without_settings() -> None:
    found = recipe("unsloth", "")
    assert (found.optim.optimizer, found.optim.learning_rate, found.optim.weight_decay) == (
        "adamw_8bit",
        2e-4,
        0.01,
    )
    assert (found.model.adapter.rank, found.model.adapter.alpha, found.model.quantize.type) == (64, 16, "nf4")
    assert (found.train.seed, found.train.epochs, found.optim.warmup_steps) == (3407, 3, 5)
    assert found.method.train_on == "everything"


def test_sources_of_axolotl() -> None:
    text = HEAD["axolotl"].replace(
        "[{path: a/c, type: alpaca}]",
        "[{path: json, data_files: [x.jsonl, y.jsonl], type: alpaca}, {path: z.jsonl, type: sharegpt},"
        " {path: a/d, type: {field_instruction: question, field_output: answer}},"
        " {path: a/e, type: chat_template, message_property_mappings: {role: speaker, content: text}}]",
    )
    Path("file.yaml").write_text(text)
    found = import_file("file.yaml")
    Path("recipe.yaml").write_text(found.recipe)
    sources = load_recipe("recipe.yaml", check_files=False).data.train
    assert [(one.path, one.format, one.columns) for one in sources] == [
        ("x.jsonl", "alpaca", {}),
        ("y.jsonl", "alpaca", {}),
        ("z.jsonl", "sharegpt", {}),
        ("hf://a/d", "alpaca", {"instruction": "question", "output": "answer"}),
        ("hf://a/e", "messages", {}),
    ]
    assert "turns with the fields speaker, text: rename them" in found.recipe


def test_mixtures_of_the_alignment_handbook() -> None:
    head = "model_name_or_path: a/b\nlearning_rate: 1e-5\nbeta: 0.1\neval_strategy: steps\neval_steps: 10\noutput_dir: o\n"
    Path("recipe.yaml").write_text("")
    for text in (
        "dataset_mixer: {a/c: 1.0, a/d: 0.5}\ndataset_splits: [train_prefs, test_prefs]\n",
        "dataset_mixture: {datasets: [{id: a/c, split: train_prefs, weight: 1.0}, {id: a/d, split: train_prefs, weight: 0.5}]}\n",
    ):
        Path("file.yaml").write_text(head + text)
        Path("recipe.yaml").write_text(import_file("file.yaml").recipe)
        data = load_recipe("recipe.yaml", check_files=False).data
        assert [(one.path, one.split, one.weight) for one in data.train] == [
            ("hf://a/c", "train_prefs", 1.0),
            ("hf://a/d", "train_prefs", 0.5),
        ]
        if "mixer" in text:
            assert [(one.path, one.split) for one in data.evaluation] == [
                ("hf://a/c", "test_prefs"),
                ("hf://a/d", "test_prefs"),
            ]


@pytest.mark.parametrize(
    ("text", "outcomes"),
    [
        ("warmup_steps: 10\nwarmup_ratio: 0.1\n", {"warmup_ratio": "warmup_steps counts"}),
        ("max_steps: $STEPS\nwarmup_ratio: lots\n", {"max_steps": "not a number", "warmup_ratio": "not a number"}),
        ("bf16: $BF\n", {"bf16": "not true or false"}),
        ("nproc_per_node: $N\n", {"nproc_per_node": "the number of GPUs is not known"}),
        ("max_steps: -1\nbf16: false\n", {"max_steps": "off: the epochs", "bf16": "train.precision says"}),
    ],
)  # fmt: skip
def test_a_value_that_is_not_known_is_not_off(text: str, outcomes: dict[str, str]) -> None:
    answers = {answer.argument.name: answer for answer in imported("trl", text).answers}
    for name, said in outcomes.items():
        assert said in answers[name].text
        assert (answers[name].outcome == "unsupported") == ("not " in said)


def test_what_a_shell_computes_is_one_value() -> None:
    Path("run.sh").write_text(
        "trl sft --model_name_or_path a/b --dataset_name $(cat names | head -1) --learning_rate `cat rate` "
        '--packing $PACK $EXTRA --max_length 64 --output_dir "o/$(date +%s)" --report_to none $MORE "$@"\n'
    )
    values = {answer.argument.name: answer.argument.value for answer in import_file("run.sh").answers}
    assert values["dataset_name"].startswith("$(cat_")
    assert values["learning_rate"] == "`cat_rate`"
    assert (values["packing"], values["report_to"], values["max_length"]) == ("$PACK", "none", 64)


def test_one_cycle_of_restarts_is_a_cosine_and_the_order_of_arguments_does_not_count() -> None:
    text = "lr_scheduler_kwargs: %s\nlearning_rate: 1e-3\nlr_scheduler_type: %s\n"
    assert recipe("trl", text % ("{}", "cosine_with_restarts")).optim.schedule == "cosine"
    assert recipe("trl", text % ("{num_cycles: 1}", "cosine_with_restarts")).optim.schedule == "cosine"
    found = recipe("trl", text % ("{num_cycles: 3}", "cosine_with_restarts")).optim
    assert (found.schedule, found.cycles) == ("cosine_with_restarts", 3)
    found = recipe("trl", text % ("{min_lr_rate: 0.1}", "cosine_with_min_lr")).optim
    assert found.min_learning_rate == pytest.approx(1e-4)


def test_preference_tuning_has_no_dropout_and_simpo_of_trl_an_nll() -> None:
    lora = "use_peft: true\nlora_dropout: 0.1\n"
    assert recipe("trl", lora + "loss_type: ipo\n").model.adapter.dropout == 0
    assert recipe("trl", lora + "loss_type: ipo\ndisable_dropout: false\n").model.adapter.dropout == 0.1
    assert recipe("trl", lora).model.adapter.dropout == 0.1
    assert recipe("trl", "loss_type: simpo\n").method.sft_weight == 1
    assert recipe("trl", "loss_type: simpo\ncpo_alpha: 0\n").method.sft_weight == 0
    smooth = recipe("trl", "loss_type: sigmoid\nlabel_smoothing_factor: 0.1\n").method
    assert (smooth.name, smooth.label_smoothing) == ("dpo", 0)
    assert recipe("trl", "label_smoothing_factor: 0.1\n").method.label_smoothing == 0.1


def test_a_length_without_a_limit_is_answered() -> None:
    found = imported("torchtune", "tokenizer: {_component_: x.tokenizer, max_seq_len: null}\n")
    assert "max_length: 2048  # torchtune has no limit: raise it if rows are longer" in found.recipe
    assert (
        "#   tokenizer.max_seq_len: null  -> a recipe has a limit" in found.recipe.split("# Not supported")[1]
    )
    given = imported("torchtune", "tokenizer: {_component_: x.tokenizer, max_seq_len: 512}\n")
    assert "max_length: 512  # tokenizer.max_seq_len: 512" in given.recipe


def test_rows_that_are_too_long_may_stop_a_run_of_axolotl() -> None:
    def data(value: str) -> Any:
        return recipe("axolotl", f"excess_length_strategy: {value}\n").data

    assert (data("raise").on_long, data("raise").budget.dropped) == ("drop", 0.0)
    assert data("drop").budget.dropped > 0
    assert data("truncate").on_long == "truncate"


@pytest.mark.parametrize("line", ["", "disable_dropout: true\n", "disable_dropout: false\n"])
def test_preference_tuning_of_trl_has_no_dropout(line: str) -> None:
    found = recipe("trl", f"trainer: dpo\nuse_peft: true\nlora_dropout: 0.1\n{line}").model
    kept = "false" in line
    assert (found.base_dropout, found.adapter.dropout) == ((None, 0.1) if kept else (0, 0))
    assert recipe("trl", "trainer: sft\n").model.base_dropout is None


@pytest.mark.parametrize(
    ("folder_of", "output", "loss"),
    [
        ("zephyr/orpo", "out", "orpo"),
        (".", "data/zephyr-orpo-141b", "orpo"),
        (".", "data/corpora", "sigmoid"),
        ("zephyr/dpo", "out", "sigmoid"),
    ],
)
def test_orpo_of_the_alignment_handbook(folder_of: str, output: str, loss: str) -> None:
    path = Path(folder_of) / "config_full.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{HEAD['trl']}beta: 0.05\nmax_prompt_length: 512\noutput_dir: {output}\n")
    Path("recipe.yaml").write_text(import_file(str(path), "trl").recipe)
    assert load_recipe("recipe.yaml", check_files=False).method.loss == loss


def test_the_command_line_of_unsloth_has_its_own_defaults() -> None:
    Path("train.sh").write_text(
        "python unsloth-cli.py --model_name a/b --max_seq_length 512 --lora_alpha 32\n"
    )
    Path("recipe.yaml").write_text(import_file("train.sh").recipe)
    found = load_recipe("recipe.yaml", check_files=False)
    assert (found.model.adapter.rank, found.model.adapter.alpha, found.model.quantize) == (16, 32, None)
    assert (found.train.steps, found.train.epochs) == (400, None)
    assert found.data.train[0].path == "hf://yahma/alpaca-cleaned"


@pytest.mark.parametrize(
    ("bits", "outcome"), [("3", "unsupported"), ("many", "unsupported"), ("4", "taken"), ("16", "unneeded")]
)
def test_bits_that_a_recipe_lacks_are_not_called_needless(bits: str, outcome: str) -> None:
    found = imported("llama-factory", f"quantization_bit: {bits}\n")
    (answer,) = (one for one in found.answers if one.argument.name == "quantization_bit")
    assert answer.outcome == outcome
    assert ("quantize:" in found.recipe) == (outcome == "taken")
