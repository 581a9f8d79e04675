"""The syntax of Kubernetes names, labels and quantities."""

from __future__ import annotations

import re
from fractions import Fraction

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
"""RFC 1123 label: namespaces, volumes."""
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
"""RFC 1123 subdomain: Secrets, claims, service accounts; up to 253 characters."""
MAX_NAME_LENGTH = 47
"""Maximum length of a RayJob's name. KubeRay appends suffixes to it for the names of the cluster, services and pods."""
NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
"""RFC 1035 label: RayJobs and RayClusters."""
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SECRET_KEY = re.compile(r"[-._A-Za-z0-9]+")

_PART = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_QUANTITY = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)([KMGTP]i|[kMGTP])?")
_UNITS = {
    **{f"{letter}i": 1024**power for power, letter in enumerate("KMGTP", start=1)},
    **{letter: 1000**power for power, letter in enumerate("kMGTP", start=1)},
}


def is_subdomain(text: str) -> bool:
    """Whether it is an RFC 1123 subdomain."""
    return len(text) <= 253 and bool(SUBDOMAIN.fullmatch(text))


def is_label_value(text: str) -> bool:
    """Whether it is a valid value of a label; an empty one is."""
    return not text or bool(_PART.fullmatch(text))


def is_qualified(key: str) -> bool:
    """Whether it is a valid key of a label or annotation: `name` or `prefix/name`."""
    *prefix, name = key.split("/")
    return len(prefix) <= 1 and all(map(is_subdomain, prefix)) and bool(_PART.fullmatch(name))


def bytes_of(quantity: str) -> int | None:
    """Number of bytes of a quantity such as `64Gi` or `1.5G`. None if it is not a valid quantity greater than zero."""
    match = _QUANTITY.fullmatch(quantity)
    if not match:
        return None
    size = Fraction(match[1]) * _UNITS.get(match[2], 1)
    return int(size) or None


def name_from(stem: str) -> str:
    """A valid RayJob name, derived from a recipe's file name."""
    name = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")
    name = name if NAME.fullmatch(name) else f"tailor-{name}".strip("-")
    return name[:MAX_NAME_LENGTH].rstrip("-")
