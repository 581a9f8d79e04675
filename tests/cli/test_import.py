"""`tailor import`: files of other trainers as recipes."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tailor.cli.main import main
from tailor.cli.schema import output_schema_text
from tailor.spec.load import load_recipe

AXOLOTL = """\
base_model: org/base
datasets:
  - {path: org/rows, type: alpaca, split: "train[:1000]"}
sequence_len: 2048
adapter: qlora
load_in_4bit: true
lora_r: 32
lora_target_linear: true
micro_batch_size: 2
gradient_accumulation_steps: 4
learning_rate: 2e-4
optimizer: paged_adamw_32bit
lr_scheduler: constant_with_warmup
warmup_steps: 10
saves_per_epoch: 1
output_dir: out
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(folder: Path, text: str, name: str = "sft.yaml", *arguments: str) -> Any:
    """The recipe that is made of a file."""
    (folder / name).write_text(text)
    (folder / "recipe.yaml").unlink(missing_ok=True)
    assert main(["import", name, "-o", "recipe.yaml", *arguments]) == 0
    return load_recipe("recipe.yaml", check_files=False)


def test_the_recipe_validates_and_says_what_became_of_each_argument(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = written(folder, AXOLOTL)
    assert recipe.data.train[0].limit == 1000
    assert (recipe.optim.optimizer, recipe.optim.schedule) == ("paged_adamw", "constant_with_warmup")
    assert recipe.train.batch_size == 8
    out = capsys.readouterr().out
    assert "recipe.yaml: Axolotl: 15 arguments: 14 taken over, 1 not supported\n" in out
    assert out.endswith("  the recipe validates\n")
    text = Path("recipe.yaml").read_text()
    assert "optimizer: paged_adamw  # optimizer: paged_adamw_32bit\n" in text
    assert "#   saves_per_epoch: 1  -> " in text.split("# Not supported, and what that changes:")[1]
    assert main(["validate", "recipe.yaml"]) == 0


def test_without_a_file_to_write_the_recipe_is_printed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "sft.yaml").write_text(AXOLOTL)
    assert main(["import", "sft.yaml"]) == 0
    captured = capsys.readouterr()
    (folder / "recipe.yaml").write_text(captured.out)
    assert load_recipe("recipe.yaml").model.path == "org/base"
    assert "sft.yaml: Axolotl: 15 arguments" in captured.err


def test_the_standard_input(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(AXOLOTL.encode())))
    assert main(["import", "-"]) == 0
    captured = capsys.readouterr()
    assert "# Written by `tailor import` from the standard input (Axolotl)." in captured.out
    assert "the standard input: Axolotl: 15 arguments" in captured.err
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert main(["import", "-"]) == 2
    assert "the standard input" in capsys.readouterr().err


def test_a_pipe_without_a_writer_is_not_waited_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("pipe.yaml")
    assert main(["import", "pipe.yaml"]) == 2
    assert "pipe.yaml: is a pipe or a device; write `tailor import -`" in capsys.readouterr().err


def test_json_follows_its_schema(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import jsonschema

    (folder / "sft.yaml").write_text(AXOLOTL + "frobnicate: 1\n")
    assert main(["import", "sft.yaml", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    jsonschema.validate(found, json.loads(output_schema_text("import")))
    outcomes = {one["argument"].split(":")[0]: one["outcome"] for one in found["arguments"]}
    assert outcomes["lora_r"] == "taken"
    assert outcomes["saves_per_epoch"] == "unsupported"
    assert outcomes["frobnicate"] == "unknown"
    assert found["arguments"][6]["line"] == 8
    assert found["problems"] == []


def test_an_unknown_argument_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(folder, AXOLOTL + "sequence_length_x: 3\n")
    assert "unknown: sequence_length_x: 3" in capsys.readouterr().out
    assert "# Unknown:\n#   sequence_length_x: 3" in Path("recipe.yaml").read_text()


def test_what_is_left_to_do_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(folder, AXOLOTL.replace("org/rows", "./rows.jsonl").replace("base_model: org/base\n", ""))
    out = capsys.readouterr().out
    assert "left to do: model.path: " in out
    assert "left to do: data.train.0.path: no such file or folder: ./rows.jsonl" in out
    assert "model:\n  path: path/to/model  # fill in: the base model" in Path("recipe.yaml").read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "stage: rm\nfinetuning_type: lora\nmodel_name_or_path: a/b\n",
            "stage: rm: reward models are not trained",
        ),
        ("base_model: a/b\nsequence_len: 8\nrl: grpo\n", "sft.yaml:3:1: rl: grpo: training on answers"),
        ("base_model: a/b\nsequence_len: 8\nprocessor_type: AutoProcessor\n", "models are trained on text"),
        ("a: 1\n", "sft.yaml: is not recognized; name its trainer with --from: trl, axolotl"),
        ("- 1\n", "must be a mapping of names to values"),
        ("base_model: !!python/object/apply:os.system [ls]\n", "tags"),
        ("a: &x [1]\nb: *x\n", "write out the value"),
        ("a: {b: 1\n", "a { is not closed"),
        ("zero_optimization: {stage: 2}\n", "is a DeepSpeed JSON"),
        ("", "has no arguments"),
    ],
)
def test_refusals(folder: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "sft.yaml").write_text(text)
    assert main(["import", "sft.yaml", "-o", "recipe.yaml"]) == 2
    assert said in capsys.readouterr().err
    assert not (folder / "recipe.yaml").exists()


def test_files_that_cannot_be_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "large.json").write_text(" " * (1 << 21))
    (folder / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (folder / "empty.sh").write_text("echo done\n")
    for name, said in (
        ("none.yaml", "no such file"),
        (".", "is a folder"),
        ("large.json", "too large"),
        ("binary.yaml", "not UTF-8"),
        ("empty.sh", "has no command of a trainer"),
    ):
        assert main(["import", name]) == 2
        assert said in capsys.readouterr().err


def test_a_file_is_not_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "sft.yaml").write_text(AXOLOTL)
    assert main(["import", "sft.yaml", "-o", "sft.yaml"]) == 2
    assert "sft.yaml exists already" in capsys.readouterr().err
    assert (folder / "sft.yaml").read_text() == AXOLOTL


def test_secrets_are_not_copied(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    token = "hf_" + "aB3dEf6hIjKlMnOpQrStUvWx" + "Yz01234567"
    written(
        folder,
        AXOLOTL
        + f"hub_token: {token}\nwandb_entity: {token}\nnote: {token}\nlora_model_dir: https://me:{token}@host/x\n",
    )
    assert token not in Path("recipe.yaml").read_text() + "".join(capsys.readouterr())


def test_foreign_text_cannot_leave_its_comment(folder: Path) -> None:
    text = json.dumps(
        {
            "base_model": "org/base",
            "sequence_len": 64,
            "learning_rate": 1e-4,
            "note\nsave: {to: x}": "a\nb: 1\u2028c\x1b[31m",
        }
    )
    recipe = written(folder, text, "sft.json")
    assert recipe.save.to == "runs/imported"
    assert "\x1b" not in Path("recipe.yaml").read_text()


FIREFLY = {
    "output_dir": "out", "model_name_or_path": "org/base", "train_file": "rows.jsonl", "max_seq_length": 1024, "train_mode": "full",
    "per_device_train_batch_size": 1, "gradient_accumulation_steps": 16, "learning_rate": "1e-5", "fp16": True, "deepspeed": "./train_args/ds.json",
    "optim": "adamw_hf", "lora_rank": 64,
}  # fmt: skip


def test_firefly_with_its_deepspeed_json(folder: Path) -> None:
    zero = {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "none"}}
    (folder / "ds.json").write_text(json.dumps({"zero_optimization": zero}))
    recipe = written(folder, json.dumps(FIREFLY), "sft.json")
    strategy = recipe.scale.strategy
    assert (strategy.name, strategy.stage, strategy.offload_optimizer) == ("deepspeed", 3, "cpu")
    assert strategy.offload_parameters is None
    assert recipe.model.adapter is None
    assert (recipe.train.batch_size, recipe.train.precision) == (16, "auto")
    assert recipe.data.train[0].format == "firefly"
    text = Path("recipe.yaml").read_text()
    assert (
        "#   fp16: true  -> scale.strategy deepspeed stage 3, which supports only bf16 or fp32\n"
        in text.split("# Not supported")[1]
    )
    assert "#   lora_rank: 64  -> all weights are trained: there is no adapter" in text


def test_defaults_of_the_other_trainer_are_written_out(folder: Path) -> None:
    given = {
        key: value for key, value in FIREFLY.items() if key not in ("train_mode", "lora_rank", "deepspeed")
    }
    recipe = written(folder, json.dumps(given), "sft.json")
    assert recipe.model.adapter.rank == 64
    assert recipe.model.quantize.type == "nf4"
    assert (recipe.train.epochs, recipe.optim.schedule, recipe.data.pack, recipe.data.on_long) == (
        3,
        "linear",
        False,
        "truncate",
    )
    assert "# default of Firefly: lora_rank: 64" in Path("recipe.yaml").read_text()


COMMAND = """\
#!/bin/bash
out=runs/grit-$(date +%s)
name=grit
export MODE="unified"
torchrun --nproc_per_node 4 -m training.run \\
  --output_dir out/$name --model_name_or_path org/base --train_data rows \\
  --mode $MODE --train_group_size 4 --query_max_len 64 --passage_max_len=256 \\
  --per_device_train_batch_size 8 --learning_rate 2e-5 --normalized --no_gen_gas \\
  --pooling_method mean --attn bbcc # a comment
touch {mark}
"""


def test_a_command_line_is_read_and_not_executed(folder: Path) -> None:
    mark = folder / "executed"
    recipe = written(folder, COMMAND.replace("{mark}", f"{mark}; $(touch {mark}) `touch {mark}`"), "train.sh")
    assert not mark.exists()
    assert recipe.save.to == "out/grit"
    assert recipe.method.name == "gritlm"
    assert (recipe.method.group_size, recipe.method.max_query_length, recipe.method.max_passage_length) == (
        4,
        64,
        256,
    )
    assert (recipe.scale.workers, recipe.method.embedding_batch_size) == (4, 32)
    assert recipe.method.normalize


def test_a_command_with_unknown_variables_is_left_to_fill_in(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "train.sh").write_text(
        "trl sft --model_name_or_path $MODEL/a --dataset_name org/rows --output_dir out --learning_rate 1e-5\n"
    )
    assert main(["import", "train.sh", "-o", "recipe.yaml"]) == 0
    assert (
        "left to do: model.path: $MODEL/a: environment variables ($MODEL) are not expanded"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("command", "name", "loss"),
    [
        ("trl dpo", "dpo", "sigmoid"),
        ("python examples/scripts/orpo.py", "dpo", "orpo"),
        ("trl kto", "kto", None),
    ],
)
def test_the_method_of_a_trl_command(folder: Path, command: str, name: str, loss: str | None) -> None:
    recipe = written(
        folder, f"{command} --model_name_or_path a/b --dataset_name a/c --output_dir o --beta 0.2", "run.sh"
    )
    assert (recipe.method.name, getattr(recipe.method, "loss", None), recipe.method.beta) == (name, loss, 0.2)


def test_a_config_yml_of_an_sft_script(folder: Path) -> None:
    text = (
        "model_name: facebook/opt-350m\ndataset_name: stanfordnlp/imdb\ndataset_text_field: content\nbatch_size: 4\nseq_length: 256\n"
        "gradient_accumulation_steps: 2\nuse_peft: true\npeft_lora_r: 64\npeft_lora_alpha: 16\nload_in_8bit: true\nmax_steps: -1\n"
        "output_dir: out\nuse_auth_token: true\nsave_total_limit: 5\n"
    )
    recipe = written(folder, text, "config.yml")
    source = recipe.data.train[0]
    assert (source.path, source.format, source.columns) == (
        "hf://stanfordnlp/imdb",
        "text",
        {"text": "content"},
    )
    assert (recipe.model.adapter.rank, recipe.model.quantize.type, recipe.train.batch_size) == (64, "int8", 8)
    assert (recipe.train.steps, recipe.save.keep) == (None, 5)


def test_from_names_the_trainer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "model_name: a/b\nlearning_rate: 1e-4\nmax_seq_length: 64\n"
    recipe = written(folder, text, "x.yaml", "--from", "unsloth")
    assert (recipe.model.path, recipe.data.max_length) == ("a/b", 64)
    assert main(["import", "x.yaml", "--from", "keras"]) == 2
    assert "invalid choice: 'keras'" in capsys.readouterr().err


def test_an_interpolation_of_torchtune(folder: Path) -> None:
    text = (
        "output_dir: /tmp/out\nmodel: {_component_: torchtune.models.llama3.qlora_llama3_8b, lora_rank: 8, lora_attn_modules: [q_proj]}\n"
        "checkpointer: {_component_: x, checkpoint_dir: org/base, output_dir: '${output_dir}'}\n"
        "dataset: {_component_: torchtune.datasets.alpaca_dataset, packed: true}\nbatch_size: 2\n"
        "optimizer: {_component_: bitsandbytes.optim.PagedAdamW8bit, lr: 2e-4}\nmetric_logger: {_component_: x, log_dir: '${output_dir}/logs'}\n"
    )
    recipe = written(folder, text, "tune.yaml")
    assert (recipe.optim.optimizer, recipe.optim.max_grad_norm, recipe.data.pack) == (
        "paged_adamw_8bit",
        None,
        True,
    )
    assert recipe.model.quantize.type == "nf4"
    assert "metric_logger.log_dir: /tmp/out/logs" in Path("recipe.yaml").read_text()


def test_settings_of_every_source(folder: Path) -> None:
    text = (
        "output_dir: out\nmodel: {_component_: torchtune.models.llama3.llama3_8b}\ncheckpointer: {checkpoint_dir: org/base}\n"
        "dataset: {_component_: torchtune.datasets.chat_dataset, source: org/chats, conversation_style: sharegpt, split: 'train[:50]', train_on_input: true}\n"
        "optimizer: {_component_: torch.optim.AdamW, lr: 2e-5}\nmetric_logger: {}\n"
    )
    recipe = written(folder, text, "tune.yaml")
    source = recipe.data.train[0]
    assert (source.path, source.format, source.limit) == ("hf://org/chats", "sharegpt", 50)
    assert recipe.method.train_on == "everything"
    assert recipe.model.adapter is None


def test_attention_of_gritlm(folder: Path) -> None:
    command = "torchrun -m training.run --model_name_or_path a/b --train_data d --output_dir o --train_group_size 2 --attn bcbc --mode unified"
    recipe = written(
        folder,
        f"{command} --learning_rate 1e-5 --loss_gen_type token --emb_q_only --query_max_len 64 --qlora",
        "g.sh",
    )
    method = recipe.method
    assert (method.attention, method.generative_attention, method.train_on) == (
        "bidirectional_instruction",
        "prefix_lm",
        "last_assistant",
    )
    assert (method.generative_normalization, method.embedding_gradients) == ("sequence", "queries")
    adapter, quantize = recipe.model.adapter, recipe.model.quantize
    assert (adapter.rank, adapter.alpha, adapter.dropout, quantize.type, quantize.double) == (
        16,
        64,
        0.1,
        "nf4",
        True,
    )
