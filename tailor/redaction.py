"""Recognizes secrets by their shape and by the key before them, and redacts them. No other module knows either.

Files refuse values with secrets (`tailor.spec.reading.secrets`). Messages, logs, records and model cards may contain
text from elsewhere, such as a URL in an environment variable or the error of a client: they redact it.
"""

from __future__ import annotations

import re
from typing import Any

REDACTED = "***"

# Tokens that are recognized by their prefix, whose length and alphabet exclude ordinary words, paths and hashes.
_TOKENS = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"hf_[A-Za-z0-9]{20,}|api_org_[A-Za-z0-9]{20,}"  # Hugging Face
    r"|sk-(?=[\w-]{0,40}?[A-Za-z0-9_]{16})[\w-]{20,}|[sr]k_(?:live|test)_[A-Za-z0-9]{16,}"  # OpenAI, Anthropic; Stripe
    r"|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"  # GitHub
    r"|gl(?:pat|oas|dt|rtr?|cbt|ptt|ft|imt|agent|soat|ffct|wt)-[\w-]{18,}"  # GitLab
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}(?![A-Za-z0-9])"  # AWS
    r"|AIza[\w-]{30,}|ya29\.[\w-]{20,}|GOCSPX-[\w-]{20,}"  # Google
    r"|xox[a-z]-(?=[\w-]{0,40}\d)[\w-]{10,}|xapp-[\w-]{20,}"  # Slack
    r"|wandb_v\d_\w{20,}|nvapi-[\w-]{20,}|gsk_[A-Za-z0-9]{20,}|r8_[A-Za-z0-9]{20,}|xai-[A-Za-z0-9]{20,}"
    r"|pplx-[A-Za-z0-9]{20,}|tgp_v\d_[\w-]{20,}|dapi[0-9a-f]{32}|npm_[A-Za-z0-9]{30,}|pypi-(?=[\w-]{0,40}?[A-Za-z0-9_]{16})[\w-]{30,}"
    r"|dckr_pat_[\w-]{20,}|dop_v1_[0-9a-f]{40,}|SG\.[\w-]{16,}\.[\w-]{16,}|ATATT[\w-]{20,}=?|key-[0-9a-f]{32}"
    r"|eyJ[\w-]{6,}\.eyJ[\w-]{6,}\.[\w-]*|eyJhcGlf[\w+/-]{20,}={0,2}"  # JSON web tokens; Neptune
    r"|AGE-SECRET-KEY-1[0-9A-Z]{20,}|bot\d{8,10}:[\w-]{30,}"  # age; Telegram
    r")"
)
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY(?:.{0,20000}?-----END [A-Z ]{0,30}PRIVATE KEY-----|.{0,20000})", re.S
)
# user:password@ (the password may contain slashes; a number before a slash is a port), and a user alone where no
# address has one. hf://, ssh:// and abfs:// use @ for other purposes.
_USER_INFO = re.compile(
    r"""(://)(?!\[)(?:[^\s/@:?#"']{0,200}:(?!\d{1,5}(?:[/?#"',;)\]]|\s|$))[^\s"]{1,500}"""
    r"""|(?<=(?<![A-Za-z0-9])(?:s3|gs)://)[^\s/:?#"']{1,500}|(?<=(?:http|ttps|ftps)://)[^\s/:?#"']{1,500})@""",
    re.I,
)
_WEBHOOK = re.compile(r"(hooks\.slack\.com/services/|discord(?:app)?\.com/api/webhooks/)[\w/-]{8,}", re.I)

_STRONG = (
    r"(?:api|access|secret|private|account|signing|encryption|master|shared[_-]?access)[_-]?key(?:[_-]?id)?"
    r"|secret[_-]?access[_-]?key|(?:access|auth|refresh|id|session|security|private|bearer|api|hub|hf|user|personal|sas)[_-]?token"
    r"|shared[_-]?access[_-]?signature|client[_-]?secret|secret|passwords?|passwd|passphrase|pwd(?!=/)|credentials?"
)
"""Names of keys whose values are secrets."""
_QUERY = re.compile(
    r"""((?:[?&;#]|%3F|%26)(?:x-(?:amz|goog|ms)-[\w-]{1,40}|signature|sig|token|key(?=(?:=|%3D)[\w-]{20})|auth|authorization|jwt"""
    rf"""|awsaccesskeyid|googleaccessid|[\w-]{{0,30}}(?:{_STRONG}))(?:=|%3D))(?!\*\*\*)[^\s&;#"'<>]{{1,4000}}""",
    re.I,
)
_VALUE = r"""(?!\*\*\*|<|…|\.\.\.|\$|VALUE\b)"""
_ASSIGNED = re.compile(  # password=…, --api-key=…, HF_TOKEN=…
    rf"""((?:{_STRONG}|(?<=[A-Za-z0-9]_)(?-i:TOKEN|KEY|PAT))["']?=["']?){_VALUE}[^\s"'&;<>]{{4,4000}}""",
    re.I,
)
_QUOTED = (
    re.compile(  # "password": "…", as in JSON, also as a JSON text inside another, and in a printed dict
        rf"""((?:{_STRONG})\\{{0,3}}["']\s{{0,4}}:\s{{0,4}})"""
        r"""(?:\\{0,3}"(?!\*\*\*)[^"\n]{1,4000}"|\\{0,3}'(?!\*\*\*)[^'\n]{1,4000}')""",
        re.I,
    )
)
_LINE = re.compile(  # password: …, as in YAML and headers, --password …; only what no sentence says: letters with digits
    rf"""((?:{_STRONG})\s?[:=]\s|--[\w-]{{0,30}}(?:{_STRONG})\s)"""
    r"""(?=\S{0,200}\d)(?=\S{0,200}[A-Za-z])[^\s"']{6,4000}""",
    re.I,
)
_HEADER = re.compile(r"\b(bearer |basic |authorization: ?token )(?=\S{0,200}\d)[\w.~+/-]{12,}=*", re.I)
_SAS = re.compile(r"((?:AccountKey|SharedAccessKey)=)[\w+/]{16,}=*", re.I)

_BY_SHAPE = (_TOKENS, _PRIVATE_KEY)
_BY_KEY = (_USER_INFO, _WEBHOOK, _QUERY, _SAS, _ASSIGNED, _QUOTED, _LINE, _HEADER)
_URLS = (_USER_INFO, _WEBHOOK, _QUERY)

_SECRET_KEY = re.compile(rf"(?:.*[_.-])?(?:{_STRONG}|apikey|token_secret|use_auth_token|secrets)", re.I)
_TOKEN_KEY = re.compile(
    r"token|(?:.*_)?(?:hf|hub|auth|wandb|mlflow|github|gitlab|slack|azure|aws|ray|comet|neptune|openai|bot)_token",
    re.I,
)
_VARIABLE_WORDS = frozenset(
    [
        "TOKEN",
        "SECRET",
        "SECRETS",
        "PASSWORD",
        "PASSWD",
        "PASSPHRASE",
        "CREDENTIAL",
        "CREDENTIALS",
        "KEY",
        "APIKEY",
        "PAT",
    ]
)
_NO_SECRET = ("_FILE", "_PATH", "_DIR")  # such a variable contains the path of a secret, not the secret
_TRACKER_KEY = re.compile(r"(?:local-|wandb-)?(?:[0-9a-f]{32}|[0-9a-f]{40}|[0-9a-f]{64}|[A-Za-z0-9]{86})")


def redacted(text: str) -> str:
    """The text with `***` in place of every secret. Ordinary text is returned unchanged."""
    for pattern in _BY_SHAPE:
        text = pattern.sub(REDACTED, text)
    for pattern in _BY_KEY:
        text = pattern.sub(_with_key, text)
    return text


def redacted_values(value: Any) -> Any:
    """JSON values with every text redacted, including keys, and with the values of keys that hold secrets."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {
            redacted(key) if isinstance(key, str) else key: REDACTED
            if isinstance(inner, str) and inner and isinstance(key, str) and is_secret_key(key)
            else redacted_values(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [redacted_values(inner) for inner in value]
    return value


def is_secret(text: str) -> bool:
    """Whether the text contains a secret token, or a URL or an assignment with one."""
    return is_token(text) or has_credentials(text) or redacted(text) != text


def is_token(text: str) -> bool:
    return any(pattern.search(text) for pattern in _BY_SHAPE)


def has_credentials(text: str) -> bool:
    """Whether the text contains a URL with credentials."""
    return any(pattern.search(text) for pattern in _URLS)


def is_secret_key(name: str) -> bool:
    """Whether a key of a file holds a secret. Names of model tokens, such as `eos_token`, do not."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name[-200:]).replace("-", "_")
    return bool(_SECRET_KEY.fullmatch(name) or _TOKEN_KEY.fullmatch(name))


def is_secret_variable(name: str) -> bool:
    """Whether an environment variable holds a secret, by the words of its name."""
    upper = name.upper()
    return bool(_VARIABLE_WORDS & set(upper.split("_"))) and not upper.endswith(_NO_SECRET)


def is_tracker_key(text: str) -> bool:
    """Whether a text has the form of a tracking service's API key. Hashes have it too: ask only where no hash belongs."""
    return _TRACKER_KEY.fullmatch(text) is not None


def _with_key(match: re.Match[str]) -> str:
    end = "@" if match.re is _USER_INFO else ""
    value = f'"{REDACTED}"' if match.re is _QUOTED else REDACTED
    return f"{match[1]}{value}{end}"
