"""Names of the files in a run's folder, and in the folders of models and adapters.

recipe.yaml      the resolved recipe: loads back to the same run
plan.json        every derived number
environment.json versions, hardware, git commit
data.json        the data report
status.json      state, step, error, timings
metrics.jsonl    every metric record
origin.json      the runs that this one continues
trackers.json    the ids of the run's trackers
checkpoints/     step-00000050/ …, each with its COMMIT marker
adapter/ model/ beacon/  the final artifact, one of the three
merged/          the base with the adapter merged into it
evaluation/      before.jsonl, after.jsonl: generated answers; NAME/ per evaluation, with its COMMIT marker
tensorboard/     event files
logs/            tracebacks of failed workers
report.html, loss.png …

Functions that read these folders are in `tailor.store.run_folder`.
"""

from __future__ import annotations

# A run
RECIPE = "recipe.yaml"
PLAN = "plan.json"
ENVIRONMENT = "environment.json"
DATA_REPORT = "data.json"
STATUS = "status.json"
METRICS = "metrics.jsonl"
ORIGIN = "origin.json"
TRACKERS = "trackers.json"
LOCK = ".lock"
REPORT = "report.html"
LOSS_PLOT = "loss.png"
CHECKPOINTS = "checkpoints"
ADAPTER = "adapter"
MODEL = "model"
BEACON = "beacon"
ARTIFACTS = (ADAPTER, MODEL, BEACON)
MERGED = "merged"
EVALUATION = "evaluation"
GENERATED = {when: f"{EVALUATION}/{when}.jsonl" for when in ("before", "after")}
"""Answers that a run generates before and after training."""
TENSORBOARD = "tensorboard"
LOGS = "logs"
TOKENS = "tokens"
"""Token stores, beside the runs that use them."""

# A checkpoint
STATE = "state.json"
"""Also of an evaluation, or a file of embeddings, that can be resumed."""
WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.pt"

# An evaluation
RESULTS = "results.json"
SUITE = "evaluation.yaml"
FIGURES = "figures.png"
ANSWERS = "answers.jsonl"
FACTS = "facts.jsonl"
RETRIEVAL = "retrieval.jsonl"

# A model, as transformers names its files
MODEL_CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
MODEL_WEIGHTS = "model.safetensors"
MODEL_INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
CHAT_TEMPLATE = "chat_template.jinja"

# Beside or in place of a model: an adapter as peft names its files, embeddings, beacons
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
BASE_RECORD = "base.json"
EMBEDDING = "embedding.json"
PROJECTION = "projection.safetensors"
BEACON_CONFIG = "beacon.json"
BEACON_WEIGHTS = "beacon.safetensors"
MODULES = "modules.json"
"""Of a model of sentence-transformers, as the next one."""
SENTENCE_TRANSFORMERS = "config_sentence_transformers.json"

# How an artifact was made from others
MERGE_RECORD = "merge.json"
AVERAGE_RECORD = "average.json"
EXPORT_RECORD = "export.json"
