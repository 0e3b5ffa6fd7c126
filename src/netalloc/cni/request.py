"""What a runtime asks: the command and its variables, and the configuration on the input.

CNI spec, sections 1 to 3. Everything comes from outside, so everything is checked: sizes, types
and characters.
"""

from __future__ import annotations

import json
import re

from netalloc.cni import versions
from netalloc.cni.errors import CONFIG, CONTAINER, DECODE, ENVIRONMENT, FIELD, CniError
from netalloc.light import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

COMMANDS = ("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION")
MAX_INPUT = 1 << 20  # bytes of a configuration
_NEEDED = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    "GC": ("CNI_PATH",),
    "STATUS": ("CNI_PATH",),
}
_LENIENT = ("CNI_PATH",)  # nothing here is done by other plugins
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
_MAX_ID = 255  # as owners are
_MAX_IFNAME = 15  # IFNAMSIZ without the NUL


class Request(NamedTuple):
    """A command of a runtime, checked."""

    command: str
    version: str
    container: str
    ifname: str
    netns: str
    args: dict[str, str]
    config: dict[str, Any]


def read(environment: Mapping[str, str], data: bytes) -> Request:
    """The request of a process. Raises CniError."""
    command = environment.get("CNI_COMMAND", "")
    if command not in COMMANDS:
        raise CniError(ENVIRONMENT, f"unknown CNI_COMMAND: {command[:40]}")
    config = decoded(data)
    if command == "VERSION":
        version = config.get("cniVersion")
        return Request(command, version if version in versions.SUPPORTED else versions.DEFAULT,
                       "", "", "", {}, config)  # fmt: skip
    missing = [
        name for name in _NEEDED[command] if not environment.get(name) and name not in _LENIENT
    ]
    if missing:
        raise CniError(ENVIRONMENT, f"required env variables [{','.join(missing)}] missing")
    version = versions.known(config.get("cniVersion"))
    versions.allow(command, version)
    container, ifname = environment.get("CNI_CONTAINERID", ""), environment.get("CNI_IFNAME", "")
    if "CNI_CONTAINERID" in _NEEDED[command]:
        _check_container(container)
        _check_ifname(ifname)
    _check_name(config.get("name"))
    args = _args(environment.get("CNI_ARGS", ""))
    return Request(
        command, version, container, ifname, environment.get("CNI_NETNS", ""), args, config
    )


def decoded(data: bytes) -> dict[str, Any]:
    """The configuration, a JSON object. Raises CniError."""
    if len(data) > MAX_INPUT:
        raise CniError(DECODE, f"the configuration has more than {MAX_INPUT} bytes")
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CniError(DECODE, f"the configuration is no JSON: {error}"[:300]) from None
    if not isinstance(config, dict):
        raise CniError(DECODE, "the configuration is no JSON object")
    return config


def field(holder: dict[str, Any], name: str, kind: type | tuple[type, ...], default: Any) -> Any:
    """A field of the configuration, of a type, or the default where it is missing or null."""
    value = holder.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        raise CniError(FIELD, f"{name} {json.dumps(value)[:80]} is not of the right type")
    return value


def _check_container(container: str) -> None:
    if len(container) > _MAX_ID or not _ID.fullmatch(container):
        raise CniError(CONTAINER if not container else ENVIRONMENT,
                       f"invalid CNI_CONTAINERID {container[:80]!r}",
                       f"letters, digits, . _ -, {_MAX_ID} at most")  # fmt: skip


def _check_ifname(ifname: str) -> None:
    bad = len(ifname.encode(errors="surrogateescape")) > _MAX_IFNAME or ifname in (".", "..")
    if bad or not ifname or any(c in "/:" or c.isspace() or not c.isprintable() for c in ifname):
        raise CniError(
            ENVIRONMENT,
            f"invalid CNI_IFNAME {ifname[:40]!r}",
            f"at most {_MAX_IFNAME} bytes without / : and blanks",
        )


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name:
        raise CniError(CONFIG, "the configuration has no name")
    if not _ID.fullmatch(name):
        raise CniError(CONFIG, f"name {name[:80]!r} has more than letters, digits, . _ -")


def _args(text: str) -> dict[str, str]:
    """CNI_ARGS: KEY=VALUE, with semicolons between. Raises CniError for an unknown key."""
    found: dict[str, str] = {}
    for pair in text.split(";") if text else ():
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise CniError(ENVIRONMENT, f"CNI_ARGS: invalid pair {pair[:80]!r}")
        found[key] = value
    unknown = [key for key in found if key not in ("IP", "IgnoreUnknown")]
    if unknown and found.get("IgnoreUnknown", "").lower() not in ("1", "true"):
        raise CniError(
            ENVIRONMENT, f"CNI_ARGS: unknown args {unknown[:8]}", "IgnoreUnknown=1 ignores"
        )
    return found
