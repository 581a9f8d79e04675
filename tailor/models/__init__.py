"""Base models: loading, adapters, attention over documents, and the checks that a model must pass at load.

Shapes in comments and docstrings, here and in `methods/`, use these letters:

    B  rows of a micro-batch          S  supervised tokens (targets) of a micro-batch
    T  tokens of a row or a stream    Q  queries
    D  documents of a micro-batch     P  passages
    H  hidden size                    V  vocabulary

Attention also uses h for heads and d for the size of a head. `int64[B, T]` names the dtype; without one, it is the dtype
that the model computes in. A stream (see `documents`) has B = 1.
"""
