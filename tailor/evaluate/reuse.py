"""What a model reads to answer a query from a passage, by the texts whose key-values it uses.

nothing          no key-values; the passage and the query are in the user turn, as in other RAG
document         the passage as embedded, then the query in a turn
query            the query as embedded, then the passage in a turn
document-query   passage and query as embedded, then a turn without both
query-document   query and passage as embedded, then a turn without both
"""

from __future__ import annotations

TURNS = {
    "nothing": "{passage}\n\n{query}\n\nAnswer the query. Use the passage before it if it helps.",
    "document": "{query}\n\nAnswer the query. Use the passage before it if it helps.",
    "query": "{passage}\n\nAnswer the query at the start. Use the passage after it if it helps.",
    "document-query": "Answer the query. Use the passage before it if it helps.",
    "query-document": "Answer the query at the start. Use the passage after it if it helps.",
}
"""The user turn of each value of `--reuse`."""
