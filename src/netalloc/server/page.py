"""The page, with a policy that lets nothing run but what is in it."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files


@cache
def page() -> tuple[bytes, str]:
    """Its HTML, and its Content-Security-Policy: no outside resource, no other script or style."""
    body = files("netalloc.server").joinpath("page.html").read_bytes()
    (script,), (style,) = _within(body, b"script"), _within(body, b"style")
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return body, policy


def _within(body: bytes, tag: bytes) -> list[bytes]:
    return re.findall(b"<%s>(.*?)</%s>" % (tag, tag), body, re.DOTALL)


def _hash(text: bytes) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}"
