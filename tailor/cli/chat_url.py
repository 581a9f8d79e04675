"""`tailor chat --url`: chat with a served model; answers are printed as they arrive."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from typing import Any, Literal

from tailor.cli.reply_printer import Answerer, ReplyPrinter
from tailor.encode.replies.reply import Reply
from tailor.errors import DataError, ModelError
from tailor.evaluate.chat_endpoint import ChatEndpoint, EndpointError
from tailor.printable import printable
from tailor.spec.serving import KEY_VARIABLE

TIMEOUT = 600.0
"""Seconds for one answer."""


def endpoint_of(url: str, model: str | None, ability: Literal["chat", "completions"]) -> ChatEndpoint:
    """A model on a server, by default the first one with the ability. ModelError when the server does not answer or has no such model."""
    if not url.startswith(("http://", "https://")):
        raise DataError(f"--url {url} is not the URL of a server", hint="write http://HOST:PORT/v1")
    base = url.rstrip("/") if url.rstrip("/").endswith("/v1") else f"{url.rstrip('/')}/v1"
    key = os.environ.get(KEY_VARIABLE) or None
    try:
        known = ChatEndpoint(base, "", 10.0, key).models(ability)
    except EndpointError as error:
        raise ModelError(
            f"the server at {base} does not list its models: {error}",
            hint=f"check --url, and {KEY_VARIABLE} if the server needs a key",
        ) from None
    if not known or (model is not None and model not in known):
        raise ModelError(
            f"the server at {base} has no model {model}", hint=f"it has {', '.join(known) or 'none'}"
        )
    chosen = next((name for name, can in known.items() if can and model in (None, name)), None)
    if chosen is None:
        what = f"the model {model}" if model else "no model"
        raise ModelError(
            f"{what} at {base} {'does not support' if model else 'supports'} {ability}",
            hint=f"it has {', '.join(known)}; /v1/models says what each supports",
        )
    return ChatEndpoint(base, chosen, TIMEOUT, key)


def answerer(args: argparse.Namespace) -> Answerer:
    """Answers with a served model."""
    for option, value in (
        ("--base", args.base),
        ("--whole-prompt", args.whole_prompt),
        ("--trust-remote-code", args.trust_remote_code),
    ):
        if value:
            raise DataError(
                f"{option} has no effect with --url",
                hint="remove it; the server names its models in /v1/models",
            )
    endpoint = endpoint_of(args.url, args.run, "chat")

    def reply(turns: list[dict[str, Any]]) -> Reply | None:
        body = {
            "model": endpoint.model,
            "messages": turns,
            "stream": True,
            "max_tokens": args.max_new_tokens,
            "temperature": args.temperature,
            "top_p": args.top_p,
            "seed": args.seed + len(turns),
        }
        printer = ReplyPrinter()
        try:
            for piece in endpoint.stream(json.dumps(body)):
                printer.take(piece)
        except KeyboardInterrupt:
            print(" …", end="")
        except EndpointError as error:
            print(printable(f"{error}; /reset starts a new conversation"))
            return None
        print()
        return replace(printer.reply, reasoning="")  # the history of a server is without it, as with OpenAI

    return reply
