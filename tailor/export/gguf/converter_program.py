"""A program around llama.cpp's converter: `python FILE PRE SCRIPT ARGUMENTS…`. It imports nothing of tailor.

The converter knows a byte-level tokenizer by a hash of its token ids, and rejects all others. PRE names the pre-tokenizer of
llama.cpp (`pre_tokenizers`) for one that it does not know; empty for none. With `--vocab-only`, the tokenizer is written into
a tiny Llama of zeros: llama.cpp reads tokenizers regardless of the model, and cyllama opens no file without layers.

Both need the converter's package `conversion`. A script without it (before 2026) runs unchanged.
"""

import runpy
import sys
from pathlib import Path
from typing import Any

WIDTH = 32


def main() -> None:
    name, script = sys.argv[1:3]
    sys.path[0] = str(Path(script).parent)
    sys.argv = sys.argv[2:]
    if (Path(script).parent / "conversion" / "base.py").is_file():
        from conversion.base import TextModel

        TextModel.write_vocab = _write_tokens
        if name:
            TextModel.get_vocab_base_pre = _or_else(TextModel.get_vocab_base_pre, name)
    runpy.run_path(script, run_name="__main__")


def _or_else(known: Any, name: str) -> Any:
    def get_vocab_base_pre(self: Any, tokenizer: Any) -> str:
        try:
            return str(known(self, tokenizer))
        except NotImplementedError:
            return name

    return get_vocab_base_pre


def _write_tokens(self: Any) -> None:
    import numpy as np

    self.prepare_metadata(vocab_only=True)
    writer = self.gguf_writer
    (values,) = writer.kv_data
    for key in [key for key in values if not key.startswith(("general.", "tokenizer."))]:
        del values[key]
    writer.arch = values["general.architecture"].value = "llama"
    writer.add_block_count(1)
    writer.add_context_length(2 * WIDTH)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    layer = (
        ("attn_norm", "ffn_norm"),
        ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"),
    )
    shapes = {"token_embd": (len(values["tokenizer.ggml.tokens"].value), WIDTH), "output_norm": (WIDTH,)}
    shapes |= {f"blk.0.{name}": (WIDTH,) for name in layer[0]} | {
        f"blk.0.{name}": (WIDTH, WIDTH) for name in layer[1]
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, dtype=np.float32))
    writer.write_header_to_file(path=self.fname_out)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
