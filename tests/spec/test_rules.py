"""Each rule between keys, with overrides that break it and overrides that keep it. The exact messages are in the fixtures."""

from __future__ import annotations

from pathlib import Path

import pytest

from tailor.spec.rules import files, recipe
from tests.spec.helpers import GOOD, problems, write

EVALUATED = "data.holdout=0.1"
ADAPTER = "model.adapter={}"
TOGETHER = ["scale.workers=2", "scale.sequence_parallel=2"]
OFFLOADED = ["train.activation_checkpointing=true", "train.activation_offloading=true"]
BEACON = ["model.beacon={}", "data.pack=false"]
WSD = ["optim.schedule=wsd"]
RATIOS = "optim.learning_rate_ratios"
POSE = ["train.pose={}"]
SCALED = ["model.rope={name: linear, factor: 4, original_length: 4096}"]
LONGROPE = [
    "model.rope={name: longrope, original_length: 4096, length: 16384, short_factor: [1], long_factor: [2]}"
]
ALONE = ["data.pack=false", "train.micro_batch_size=1"]
STOPPING = [EVALUATED, "evaluate.every=5"]
PRETRAIN, GRITLM = "method={name: pretrain}", "method={name: gritlm}"
DPO, KTO = "method={name: dpo}", "method={name: kto}"


@pytest.mark.parametrize(
    ("broken", "kept"),
    [
        (["train.epochs=1", "train.steps=5"], ["train.epochs=1", "train.steps=null"]),
        (["train.batch_size=1", "train.batch_tokens=4096"], ["train.batch_tokens=4096"]),
        (["optim.warmup_ratio=0.1", "optim.warmup_steps=0"], ["optim.warmup_steps=0"]),
        ([EVALUATED, "data.evaluation=[{path: hf://a/b}]"], [EVALUATED, "data.evaluation=[]"]),
        (
            ["train.batch_size=4", "train.micro_batch_size=5"],
            ["train.batch_size=4", "train.micro_batch_size=4"],
        ),
        (["scale.workers=9"], ["scale.workers=8"]),
        (["scale.sequence_parallel=2", "scale.workers=3"], ["scale.sequence_parallel=2", "scale.workers=4"]),
        (
            ["scale.sequence_parallel=2", "scale.workers=18"],
            ["scale.sequence_parallel=2", "scale.workers=16"],
        ),
        (["scale.sequence_parallel=2"], ["scale.sequence_parallel=1"]),
        (
            [*TOGETHER, DPO],
            [*TOGETHER, "method={name: pretrain}", "data.train=[{path: hf://a/b, format: text}]"],
        ),
        ([*TOGETHER, "model.attention=sdpa"], [*TOGETHER, "model.attention=auto"]),
        (["train.activation_offloading=true"], [*OFFLOADED]),
        ([*OFFLOADED, "scale.gpu=false"], [*OFFLOADED, "scale.gpu=auto"]),
        ([*OFFLOADED, "train.compile=true"], ["train.activation_checkpointing=2", "train.compile=true"]),
        (["train.tiled_mlp=true", "train.compile=true"], ["train.tiled_mlp=true"]),
        (["scale.workers=9", "train.batch_size=8"], ["scale.workers=9", "train.batch_size=9"]),
        (["train.batch_tokens=2047"], ["train.batch_tokens=2048"]),
        (["train.batch_tokens=99", "data.max_length=100"], ["train.batch_tokens=100", "data.max_length=100"]),
        (["train.steps=10", "optim.warmup_steps=10"], ["train.steps=10", "optim.warmup_steps=9"]),
        (
            ["train.order=short_to_long", PRETRAIN, "data.train=[{path: hf://a/b, format: text}]"],
            [
                "train.order=short_to_long",
                "method={name: pretrain, documents: isolate}",
                "data.train=[{path: hf://a/b, format: text}]",
            ],
        ),
        (
            ["data.weight_by=tokens"],
            ["data.weight_by=tokens", "data.train=[{path: hf://a/b}, {path: hf://a/c}]"],
        ),
        ([GRITLM, "train.order=short_to_long"], ["train.order=short_to_long"]),
        ([*POSE, DPO], [*POSE, PRETRAIN, "data.train=[{path: hf://a/b, format: text}]"]),
        ([*POSE, KTO], [*POSE]),
        ([*POSE, GRITLM], ["train.pose=null", GRITLM]),
        ([*POSE, *BEACON], ["train.pose=null", *BEACON]),
        *(
            ([*POSE, rows], [*POSE, rows, "data.pack=false"])
            for rows in ("model.attention=sdpa", "model.attention=eager")
        ),
        (["train.pose.length=2048"], ["train.pose.length=2049"]),
        (["train.pose.length=100", "data.max_length=100"], ["train.pose.length=101", "data.max_length=100"]),
        (["train.pose.length=8", "data.max_length=8"], ["train.pose.length=9", "data.max_length=8"]),
        (["train.pose.chunks=1"], ["train.pose.chunks=2"]),
        ([*SCALED, "train.pose.length=16385"], [*SCALED, "train.pose.length=16384"]),
        (
            ["model.rope={name: dynamic, factor: 4, original_length: 4096}", *POSE],
            ["model.rope={name: dynamic, factor: 4, original_length: 4096}", *POSE, *ALONE],
        ),
        ([*LONGROPE, *POSE], [*LONGROPE]),
        ([*LONGROPE, *POSE], [*LONGROPE, *POSE, *ALONE]),
        ([*LONGROPE, "train.pose.length=4097"], [*LONGROPE, "train.pose.length=4096"]),
        (
            [GRITLM, "data.weight_by=tokens", "data.train=[{path: hf://a/b}, {path: hf://a/c}]"],
            [GRITLM, "data.train=[{path: hf://a/b}, {path: hf://a/c}]"],
        ),
        (
            ["evaluate.final={tasks: [{name: forgetting}], compare: [unscaled_base]}"],
            ["evaluate.final={tasks: [{name: forgetting}], compare: [base]}"],
        ),
        (["model.init=random", ADAPTER], ["model.init=random"]),
        (["model.init=random", ADAPTER, "model.quantize={}"], [ADAPTER, "model.quantize={}"]),
        (["model.quantize={}"], ["model.quantize={}", ADAPTER]),
        (
            [ADAPTER, "model.quantize={type: int8, double: true}"],
            [ADAPTER, "model.quantize={type: nf4, double: true}"],
        ),
        (["model.adapter.target_modules=[]"], ["model.adapter.target_modules=[q]"]),
        (["model.adapter.target_modules=[q, q]"], ["model.adapter.target_modules=[q, k]"]),
        (
            ["model.adapter={target_modules: [q], modules_to_save: [q]}"],
            ["model.adapter={target_modules: [q], modules_to_save: [k]}"],
        ),
        (["model.attention=flash_attention_2", "scale.gpu=false"], ["model.attention=flash_attention_2"]),
        (
            ["model.attention=flash_attention_2", "train.precision=fp32"],
            ["model.attention=flash_attention_2", "train.precision=bf16"],
        ),
        (["evaluate.every=5"], ["evaluate.every=5", EVALUATED]),
        (["evaluate.generation={}"], ["evaluate.generation={}", EVALUATED]),
        (["save.best=true", EVALUATED], ["save.best=true", EVALUATED, "evaluate.every=5"]),
        (["data.store=runs/x"], ["data.store=runs/tokens"]),
        (["data.store=runs"], ["data.store=run"]),
        (["save.to=org/base"], ["save.to=org/base-tuned"]),
        (["model.dtype=bfloat16"], ["model.dtype=bfloat16", ADAPTER]),
        (["model.dtype=bfloat16"], ["model.dtype=auto"]),
        (["optim.momentum=0.9"], ["optim.momentum=0.9", "optim.optimizer=sgd"]),
        (
            ["optim.momentum=0.9", "optim.optimizer=schedule_free"],
            ["optim.momentum=0.9", "optim.optimizer=muon"],
        ),
        (
            ["optim.betas=[0.9, 0.9]", "optim.optimizer=sgd"],
            ["optim.betas=[0.9, 0.9]", "optim.optimizer=muon"],
        ),
        (
            ["optim.schedule=constant_with_warmup"],
            ["optim.schedule=constant_with_warmup", "optim.warmup_steps=5"],
        ),
        (
            ["optim.schedule=constant_with_warmup", "optim.warmup_steps=0"],
            ["optim.schedule=constant_with_warmup", "optim.warmup_ratio=0.1"],
        ),
        (["optim.min_learning_rate=1e-5", "optim.schedule=constant"], ["optim.min_learning_rate=1e-5"]),
        (["optim.min_learning_rate=3e-4"], ["optim.min_learning_rate=2e-4"]),
        (["optim.cycles=3"], ["optim.cycles=3", "optim.schedule=cosine_with_restarts"]),
        (["optim.decay_ratio=0.2"], [*WSD, "optim.decay_ratio=0.2"]),
        (["optim.decay_steps=20"], [*WSD, "optim.decay_steps=20"]),
        (["optim.decay=linear"], [*WSD, "optim.decay=linear"]),
        ([*WSD, "optim.decay_ratio=0.2", "optim.decay_steps=20"], [*WSD, "optim.decay_ratio=0.2"]),
        (
            [*WSD, "train.steps=10", "optim.warmup_steps=4", "optim.decay_steps=7"],
            [*WSD, "train.steps=10", "optim.warmup_steps=4", "optim.decay_steps=6"],
        ),
        (
            [*WSD, "optim.warmup_ratio=0.5", "optim.decay_ratio=0.6"],
            [*WSD, "optim.warmup_ratio=0.5", "optim.decay_ratio=0.5"],
        ),
        (["optim.optimizer=schedule_free", "optim.schedule=cosine"], ["optim.optimizer=schedule_free"]),
        (
            ["optim.optimizer=schedule_free", "optim.betas=[0.0, 0.9]"],
            ["optim.optimizer=schedule_free", "optim.betas=[0.5, 0.9]"],
        ),
        *(
            ([f"optim.optimizer={name}", f"scale.strategy={strategy}"], [f"optim.optimizer={name}"])
            for name in ("muon", "schedule_free")
            for strategy in ("fsdp", "{name: deepspeed, stage: 1}", "{name: deepspeed, stage: 3}")
        ),
        ([f"{RATIOS}.lora_b=16"], [f"{RATIOS}.lora_b=16", ADAPTER]),
        (["model.adapter={init: pissa, dora: true}"], ["model.adapter={init: gaussian, dora: true}"]),
        (["model.adapter={init: loftq}"], ["model.adapter={init: loftq}", "model.quantize={}"]),
        (
            ["model.adapter={init: loftq}", "model.quantize={type: int8}"],
            ["model.adapter={init: loftq}", "model.quantize={type: fp4}"],
        ),
        *(
            ([f"model.adapter={{init: {init}}}", "model.quantize={}"], [f"model.adapter={{init: {init}}}"])
            for init in ("pissa", "olora", "orthogonal")
        ),
        *(
            (
                [f"model.adapter={{init: {init}}}", f"scale.strategy={strategy}"],
                [f"model.adapter={{init: {init}}}"],
            )
            for init in ("pissa", "olora")
            for strategy in ("fsdp", "{name: deepspeed, stage: 1}")
        ),
        (
            ["model.adapter={init: pissa}", "scale.strategy=fsdp"],
            ["model.adapter={init: orthogonal}", "scale.strategy=fsdp"],
        ),
        (["model.adapter={rank_pattern: {'q(': 4}}"], ["model.adapter={rank_pattern: {'q|k': 4}}"]),
        *(
            (
                [f"model.adapter={{{key}_pattern: {{'{bad}': 4}}}}"],
                [f"model.adapter={{{key}_pattern: {{'{good}': 4}}}}"],
            )
            for key in ("rank", "alpha")
            for bad, good in (
                ("(a+)+$", "a+$"),
                ("(a|b){30}", "(a|b)?"),
                ("(?:.*)*x", r"\(.*\)*x"),
                ("a?a?a?a?", "a?a?a?"),
                (".*.*.*.*x", "[.*+(][.*]*.*x"),
                ("(a|b)(a|b)(a|b)(a|b)(a|b)", "layers\\.(0|1|2)\\.(q|k)_proj"),
                ("(?i)q", "(?i:q)"),
                ("", "q"),
            )
        ),
        (["model.adapter={rank: 65537}"], ["model.adapter={rank: 65536}"]),
        *(([f"method.{key}=1e308"], [f"method.{key}=1000"]) for key in ("neftune_alpha", "z_loss")),
        (["model.adapter={target_modules: ['']}"], ["model.adapter={target_modules: [q]}"]),
        (["model.adapter={rank_pattern: {q: 0}}"], ["model.adapter={rank_pattern: {q: 1}}"]),
        *(
            ([f"model.adapter={{type: {kind}, {key}}}"], [f"model.adapter={{type: {kind}}}"])
            for kind, key in (
                ("ia3", "rank: 8"),
                ("ia3", "dora: true"),
                ("oft", "alpha: 8"),
                ("oft", "rank_pattern: {q: 4}"),
                ("vera", "init: pissa"),
                ("loha", "dropout: 0.1"),
                ("lora", "oft_block_size: 8"),
            )
        ),
        *(
            (
                [f"model.adapter={{type: {kind}}}", "model.quantize={}"],
                ["model.adapter={type: oft}", "model.quantize={}"],
            )
            for kind in ("loha", "lokr")
        ),
        (
            ["model.adapter={type: ia3}", "scale.strategy=fsdp"],
            ["model.adapter={type: ia3}", "scale.strategy=ddp"],
        ),
        (["model.adapter={type: ia3}", "model.add_tokens=[x]"], [ADAPTER, "model.add_tokens=[x]"]),
        (
            ["model.adapter={type: oft}", f"{RATIOS}.lora_b=16"],
            ["model.adapter={type: oft}", f"{RATIOS}.lora_b=1"],
        ),
        ([f"{RATIOS}.embeddings=0.1", ADAPTER], [f"{RATIOS}.embeddings=0.1"]),
        (
            [f"{RATIOS}.head=0.1", ADAPTER],
            [f"{RATIOS}.head=0.1", "model.adapter={modules_to_save: [lm_head]}"],
        ),
        ([f"{RATIOS}.head=0.1", *BEACON], [f"{RATIOS}.head=1", *BEACON]),
        (["train.early_stopping={}", EVALUATED], ["train.early_stopping={}", EVALUATED, "evaluate.every=5"]),
        (["train.early_stopping={}", "evaluate.every=5"], ["evaluate.every=5", EVALUATED]),
        (
            [*STOPPING, "train.early_stopping.metric=reward_margin"],
            [*STOPPING, "train.early_stopping.metric=token_accuracy"],
        ),
        (
            [*STOPPING, "train.early_stopping.metric=ndcg@10"],
            [*STOPPING, "train.early_stopping.metric=perplexity"],
        ),
        (["optim.betas=[0.9, 0.99]", "optim.optimizer=adafactor"], ["optim.betas=[0.9, 0.99]"]),
        (["optim.eps=1e-6", "optim.optimizer=lion"], ["optim.eps=1e-6", "optim.optimizer=paged_adamw_8bit"]),
        (["save.keep=2"], ["save.keep=2", "save.every=10"]),
        ([DPO, "method.gamma=1"], [DPO, "method.gamma=1", "method.loss=simpo"]),
        (
            [DPO, "method.label_smoothing=0.1", "method.loss=ipo"],
            [DPO, "method.label_smoothing=0.1", "method.loss=cpo"],
        ),
        ([DPO, "method.reference=precomputed", "method.loss=orpo"], [DPO, "method.reference=precomputed"]),
        (
            [DPO, ADAPTER, "model.warm_start=s3://bucket/sft"],
            [DPO, "method.loss=orpo", ADAPTER, "model.warm_start=s3://bucket/sft"],
        ),
        ([DPO, "method.loss=robust"], [DPO, "method.loss=robust", "method.label_smoothing=0.1"]),
        ([DPO, "method.reference=adapter_off"], [DPO, "method.reference=adapter_off", ADAPTER]),
        ([DPO, "method.reference=copy", ADAPTER], [DPO, "method.reference=copy"]),
        ([DPO, "method.max_prompt_length=2048"], [DPO, "method.max_prompt_length=2047"]),
        (
            [DPO, "method.max_completion_length=64", "data.max_length=64"],
            [DPO, "method.max_completion_length=63", "data.max_length=64"],
        ),
        ([DPO, "data.on_long=chunk"], ["data.on_long=chunk"]),
        ([DPO, "data.train.0.format=sharegpt"], [DPO, "data.train.0.format=preference_sharegpt"]),
        (["data.train.0.format=preference"], ["data.train.0.format=messages"]),
        (["data.train.0.format=unpaired"], [KTO, "data.train.0.format=unpaired"]),
        ([KTO, "train.batch_size=1", "data.pack=false"], [KTO, "train.batch_size=1"]),
        (["export.push_to_hub=model"], ["export.push_to_hub=me/model"]),
        (["export.private=true"], ["export.private=true", "export.push_to_hub=me/model"]),
        (
            ["export.push_to_hub=me/model", "export.weights=merged"],
            ["export.push_to_hub=me/model", "export.weights=merged", ADAPTER],
        ),
        (["data.evaluation=[{path: hf://a/b, weight: 2}]"], ["data.evaluation=[{path: hf://a/b}]"]),
        (["data.train.0={path: s3://a/b, subset: x}"], ["data.train.0={path: hf://a/b, subset: x}"]),
        (["data.train=[{path: s3://a}, {path: s3://a}]"], ["data.train=[{path: s3://a}, {path: s3://b}]"]),
        (
            ["data.decontaminate=[{path: s3://a, split: x}]"],
            ["data.decontaminate=[{path: hf://a/b, split: x}]"],
        ),
        (["data.decontaminate=[{path: none.jsonl}]"], ["data.decontaminate=[{path: s3://a}]"]),
        (["data.deduplicate=fuzzy"], ["data.deduplicate=near"]),
        (["optim.learning_rate=sk-abcdefghijklmnopqrstuvwxyz"], ["optim.learning_rate=3"]),
        (["model.revision=hf_abcdefghijklmnopqrstuvwxyz"], ["model.revision=hf_branch"]),
        (["save.to=s3://key:secret@bucket/x"], ["save.to=s3://bucket/x@2:3"]),
    ],
    ids=lambda overrides: " ".join(overrides),
)
def test_rule(tmp_path: Path, broken: list[str], kept: list[str]) -> None:
    path = write(tmp_path)
    assert len(problems(path, *broken)) >= 1
    assert problems(path, *kept) == []


def test_a_rule_ignores_keys_that_are_wrong_by_themselves(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert len(problems(path, "train.epochs=many", "train.steps=5")) == 1
    assert len(problems(path, "model.quantize={}", "model.adaptor={}")) == 1
    assert len(problems(path, "evaluate.every=5", "data.holdoutt=0.1")) == 1


def test_rules_report_beside_other_mistakes(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("2e-4", "fast") + "train: {epochs: 1, steps: 1}\nsavee: {}\n")
    assert [line.split(": ")[1] for line in problems(path)] == ["optim.learning_rate", "train.steps", "savee"]


def test_local_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, GOOD.replace("org/base", "./base").replace("hf://org/rows", "rows/*.jsonl"))
    assert [line.split(": ")[1] for line in problems(path)] == ["model.path", "data.train.0.path"]
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.jsonl").write_text("{}")
    assert problems(path) == []


@pytest.mark.parametrize(
    "path", ["s3://b/x.jsonl", "hf://datasets/a/b.parquet", "memory://x", "https://x.org/a.csv"]
)
def test_urls_are_not_checked(tmp_path: Path, path: str) -> None:
    assert problems(write(tmp_path), f"data.train.0.path={path}") == []


def test_near_duplicates_need_datasketch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path)
    monkeypatch.setattr(recipe, "find_spec", lambda name: None)
    (problem,) = problems(path, "data.deduplicate=near")
    assert "near needs the package datasketch: pip install 'tailor[doctor]'" in problem
    assert problems(path, "data.deduplicate=exact") == []


def test_gguf_files_need_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, GOOD.replace("org/base", "base.gguf"))
    (problem,) = problems(path)
    assert "model.path: no such file: base.gguf" in problem
    (tmp_path / "base.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    (problem,) = problems(path)
    assert "base.gguf needs the package gguf: pip install 'tailor[gguf]'" in problem
    monkeypatch.setattr(files, "find_spec", lambda name: name)
    assert problems(path) == []
    unused = problems(path, "model.revision=main", "model.dequantize=true")
    assert ["has no effect: base.gguf is a .gguf file" in problem for problem in unused] == [True, True]
    assert not files.is_hub_id("models/base.gguf")
    assert files.is_hub_id("models/base-gguf"), "the control"
