"""Disturbs a command at an exact point, from its environment: the product itself has no hooks for tests.

Python imports a module of this name by itself when its folder is on PYTHONPATH, in the command and in Ray's workers.
DISTURB is a list of points in JSON:

    {"module": "tailor.train.checkpoint", "name": "remove_old",   what is wrapped, once its module is imported
     "does": "kill",          kill: SIGKILL to this process; half: write half of the text, then kill;
                              raise: a RuntimeError; stop, interrupt: SIGTERM or Ctrl-C; wait: 0.3 s;
                              drop: the call is left out; shift: the state's step is one more than saved;
                              set: the name gets this `value`
     "call": 2,               at which matching call of this process; 0: at each of them. Default 1
     "if": "checkpoints",     only calls whose arguments hold this text
     "rank": 1,               only in this rank
     "after": true,           after the call rather than before it
     "once": "/a/path"}       only by the first process of all, which makes this file
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import json
import os
import signal
import sys
import time

POINTS = json.loads(os.environ.get("DISTURB", "[]"))


def _mine(point, calls, arguments):
    if point.get("if", "") not in repr(arguments):
        return False
    if "rank" in point:
        dist = sys.modules.get("torch.distributed")
        if dist is None or not dist.is_initialized() or dist.get_rank() != point["rank"]:
            return False
    calls.append(1)
    if point.get("call", 1) not in (0, len(calls)):
        return False
    if "once" in point:
        try:
            os.close(os.open(point["once"], os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
    return True


def _act(point):
    does = point["does"]
    if does == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    elif does == "raise":
        raise RuntimeError(point.get("text", "disturbed"))
    elif does in ("stop", "interrupt"):
        os.kill(os.getpid(), signal.SIGTERM if does == "stop" else signal.SIGINT)
    elif does == "wait":
        time.sleep(0.3)


def _wrapped(function, point):
    calls = []

    @functools.wraps(function)
    def wrapper(*arguments, **named):
        if not _mine(point, calls, arguments):
            return function(*arguments, **named)
        if point["does"] == "drop":
            return None
        if point["does"] == "half":
            *others, text = arguments
            function(*others, text[: len(text) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        if point["does"] == "shift":
            state = function(*arguments, **named)
            state.step += 1
            return state
        if not point.get("after"):
            _act(point)
        value = function(*arguments, **named)
        if point.get("after"):
            _act(point)
        return value

    return wrapper


def _patch(module):
    for point in POINTS:
        if point["module"] == module.__name__:
            *owners, name = point["name"].split(".")
            owner = functools.reduce(getattr, owners, module)
            value = point["value"] if point["does"] == "set" else _wrapped(getattr(owner, name), point)
            setattr(owner, name, value)


class _Finder(importlib.abc.MetaPathFinder):
    """Wraps the points of a module right after the module has run."""

    def find_spec(self, name, path, target=None):
        if all(point["module"] != name for point in POINTS):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            _patch(module)

        spec.loader.exec_module = exec_module
        return spec


if POINTS:
    sys.meta_path.insert(0, _Finder())
    for _name in {point["module"] for point in POINTS} & sys.modules.keys():
        _patch(sys.modules[_name])
