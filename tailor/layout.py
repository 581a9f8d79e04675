"""Names of the files in the folders of runs, models and adapters. No other module spells them out.

recipe.yaml      the resolved recipe, every default written out
plan.json        the plan: every number that follows from the recipe and the hardware
environment.json versions, hardware, git commit
data.json        the data report
status.json      state, step, error, timings
metrics.jsonl    the metrics, one record per line
origin.json      the runs from which this one was continued
trackers.json    the run's ids in the trackers (W&B, MLflow)
checkpoints/     step-00000050/ …, each with its COMMIT marker
adapter/ model/ beacon/  the final artifact; a run has one of the three
merged/          the base model with the adapter merged into it
evaluation/      before.jsonl, after.jsonl: generated answers; one folder NAME/ per evaluation, with its COMMIT marker
tensorboard/     event files
logs/            tracebacks of failed workers
report.html, loss.png …

The functions that read these folders are in `tailor.store.run_folder`.
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
"""Folder of the token stores, beside the runs that use them."""

# A checkpoint
STATE = "state.json"
"""Also the state of an evaluation or of a file of embeddings that can be resumed."""
WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.pt"

# An evaluation
RESULTS = "results.json"
SUITE = "evaluation.yaml"
FIGURES = "figures.png"
ANSWERS = "answers.jsonl"
FACTS = "facts.jsonl"
RETRIEVAL = "retrieval.jsonl"
RERANKING = "reranking.jsonl"

# A model: the file names of transformers
MODEL_CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
MODEL_WEIGHTS = "model.safetensors"
MODEL_INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
CHAT_TEMPLATE = "chat_template.jinja"

# An adapter (the file names of peft), what an embedding model adds, and beacons
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
BASE_RECORD = "base.json"
EMBEDDING = "embedding.json"
PROJECTION = "projection.safetensors"
GENERATIVE_ATTENTION = "attention.json"
"""Only beside models that do not generate causally."""
BEACON_CONFIG = "beacon.json"
BEACON_WEIGHTS = "beacon.safetensors"
MODULES = "modules.json"
"""Files of a sentence-transformers model: this one and the next two."""
SENTENCE_TRANSFORMERS = "config_sentence_transformers.json"
SENTENCE_BERT = "sentence_bert_config.json"

# Records of how an artifact was made from others
MERGE_RECORD = "merge.json"
AVERAGE_RECORD = "average.json"
EXPORT_RECORD = "export.json"
GGUF_RECORD = "gguf.json"

# An exported file
GGUF_FILE = "model.gguf"
