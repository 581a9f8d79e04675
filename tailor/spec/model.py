"""`model`: the base model, how it is loaded, and which weights are trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tailor.spec.adapter import Adapter
from tailor.spec.base import Section
from tailor.spec.rope import Rope

HEADS = ("lm_head", "embed_out")
TOKEN_TABLES = ("embed_tokens", "wte", "word_embeddings", "embed_in", *HEADS)
"""Names of the embedding and the output head in the model families."""


class Quantize(Section):
    """Quantization of the frozen base weights (bitsandbytes)."""

    type: Literal["nf4", "fp4", "int8"] = "nf4"
    """nf4 and fp4 store 4 bits per weight (QLoRA, arXiv 2305.14314); int8 stores 8 bits (LLM.int8(), arXiv
    2208.07339).
    """

    double: bool = True
    """Double quantization: quantize the quantization constants too. Saves about 0.4 bits per weight; only for nf4 and
    fp4.
    """


class Beacon(Section):
    """Activation beacons (arXiv 2401.03462), for long contexts.

    A long document is read in windows, and each window is compressed into the keys and values of a few beacon tokens.
    Only the beacons are trained; the base model stays frozen.
    """

    window: int = Field(1024, ge=8)
    """Tokens per window. After each window, only the keys and values of its beacons are kept."""

    ratios: list[int] = Field([2, 4, 8, 16, 32], min_length=1)
    """Compression ratios: with ratio 8, one beacon replaces 8 tokens. 0 keeps all keys and values of a window. Each
    ratio must divide `window`.
    """

    draw: Literal["step-random", "adapt", "mixed"] = "step-random"
    """How training chooses the ratio. `step-random`: at random for each window. `adapt`: by the document's length,
    the smallest ratio with which the document fits into the model's positions, and into `memory` if it is set.
    `mixed`: one or the other, by step.

    Evaluation and generation always use `adapt`.
    """

    memory: Annotated[int, Field(ge=1)] | Literal["window"] | None = None
    """Number of keys that the compressed context may have before a higher ratio is chosen; `window` is the length of a
    window. A smaller memory is faster and loses more. Default: as many as the model's positions allow, as published.
    """

    sink: int = Field(0, ge=0)
    """Number of tokens at the start of a document whose own keys and values are always kept (attention sinks)."""

    projections: list[Literal["q", "k", "v"]] = Field(["q", "k", "v"], min_length=1)
    """Attention projections of each layer that have separate weights for beacons."""

    rank: int | None = Field(None, ge=1, le=65536)
    """Train low-rank updates of this rank for the beacons' projections instead of full copies. Needed with
    `model.quantize`. Default: full copies.
    """


class Model(Section):
    """The base model and which of its weights are trained."""

    path: str = Field(min_length=1)
    """A local folder in the Hugging Face layout, a model id of the Hugging Face hub, or a local `.gguf` file (needs
    `pip install 'tailor[gguf]'`).
    """

    revision: str | None = None
    """Branch, tag or commit of a hub model. Default: its main branch. Set a commit for a reproducible run."""

    init: Literal["pretrained", "random"] = "pretrained"
    """`pretrained` loads the weights. `random` builds the architecture of `config.json` with new weights, for
    pretraining from scratch.
    """

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type of frozen weights. `auto` follows `train.precision`. Weights that are trained are always stored in
    float32.
    """

    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention implementation. With `auto`, the cost of a packed row depends on the lengths of its documents, not on
    the length of the row, and no extra package is needed. Change it only to compare kernels.
    """

    kernels: Literal["none", "liger"] = "none"
    """`liger`: Liger's Triton kernels for RMSNorm and the gated MLP (SwiGLU, GeGLU), which need less GPU memory and time.
    Needs CUDA and the package liger-kernel. Results and gradients are compared with the model's own before training.
    """

    base_dropout: float | None = Field(None, ge=0, lt=1)
    """Dropout probability of the base model in training, instead of those in its `config.json` (`attn_pdrop`,
    `hidden_dropout` and others). 0 turns dropout off. It is written into the saved model's configuration. Not for
    the adapter: see `adapter.dropout`. Default: those of the base, which `tailor plan` shows.
    """

    router_aux_loss: float | None = Field(None, ge=0)
    """For a mixture of experts: weight of the load-balancing loss of its routers (arXiv 2101.03961). Default: the
    `router_aux_loss_coef` of the base's `config.json` if its `output_router_logits` is true, with methods that train on
    next tokens; else 0.
    """

    router_z_loss: float = Field(0.0, ge=0)
    """For a mixture of experts: weight of the z-loss of its routers, the mean of logsumexp(logits)² (arXiv 2202.08906)."""

    quantize: Quantize | None = None
    """Store the frozen base weights in 4 or 8 bits, to save GPU memory (QLoRA). Needs `model.adapter` or
    `model.beacon`. Default: off.
    """

    dequantize: bool = False
    """Dequantize a base model whose weights are stored quantized (bitsandbytes, fp8 or MXFP4) when it is loaded, into
    `dtype`. Together with `quantize`, the weights are quantized again. A `.gguf` file is always dequantized.
    """

    rope: Rope | None = None
    """RoPE scaling for other lengths than the base model's. It is written into the saved model's configuration.
    Default: the base model's own RoPE.

    An error is reported if the factor contradicts the lengths, or `original_length` is not the base model's.
    """

    add_tokens: list[Annotated[str, Field(min_length=1)]] = []
    """Texts that become one token each. Their rows in the embedding and the output head start as the mean of the rows of
    their pieces, and are trained, also with `adapter`. The saved tokenizer has the tokens.
    """

    adapter: Adapter | None = None
    """Train an adapter, such as LoRA; the base model stays frozen. Default: all weights are trained."""

    beacon: Beacon | None = None
    """Train activation beacons, which compress long contexts and make them cheap. Not together with `adapter`.
    Default: off.
    """

    warm_start: str | None = Field(None, min_length=1)
    """Start from trained weights: the folder of a run, a checkpoint or an adapter. The optimizer and the step count
    start from zero. To continue a run with its optimizer, use `save.resume`.
    """

    trust_remote_code: bool = False
    """Run Python code from the model's folder or repository. Only set it for code that you have read. It applies to the
    commands that read this recipe; those that load the trained model need `--trust-remote-code`.
    """
