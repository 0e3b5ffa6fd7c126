"""Who may read and who may change: by user and group, as the kernel tells them.

Root and the daemon's own user may change. Others may what the rules say, a line each:

    user alice read
    group docker change
    user 1000 change container

`container` lets in a process of another user, pid or network namespace too, which otherwise gets
nothing, whatever user it is: a socket may be reached through a mount by what it must not serve.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path
from typing import NamedTuple

from netalloc.errors import InvalidValueError
from netalloc.server.calls import CHANGE, LOOK
from netalloc.server.peer import Peer

_COMMENT = "#"


class Rule(NamedTuple):
    """A user or a group, by number, and what it may."""

    kind: str
    number: int
    right: str
    containers: bool


class Access:
    """The rules, which may be read anew while the daemon runs."""

    def __init__(self, rules: list[Rule] | None = None, path: Path | None = None) -> None:
        self._given = tuple(rules or ())
        self._path = path
        self._rules = self._given
        self.reload()

    def reload(self) -> None:
        """Read the file anew. Raises InvalidValueError, and then what was in force stays."""
        if self._path is not None:
            self._rules = (*self._given, *read_rules(self._path))

    def right_of(self, peer: Peer) -> str | None:
        """What a peer may: "change", which includes "read", or "read", or nothing."""
        found = None
        if peer.outside is None and peer.uid in (0, os.geteuid()):
            return CHANGE
        for rule in self._rules:
            if peer.outside is not None and not rule.containers:
                continue
            mine = peer.uid == rule.number if rule.kind == "user" else rule.number in peer.groups
            if mine and rule.right == CHANGE:
                return CHANGE
            found = LOOK if mine else found
        return found

    def may(self, peer: Peer, right: str) -> bool:
        """Whether a peer may read, or change."""
        has = self.right_of(peer)
        return has in (CHANGE, right)


def refusal(peer: Peer, right: str) -> str:
    """Why a peer is refused, and what would let it in."""
    who = f"user {peer.uid} (process {peer.pid})"
    if peer.outside is not None:
        rule = "a rule with the word container lets it in"
        return f"{who} is of another {peer.outside} namespace: {rule}"
    return f"{who} may not {right}: a rule `user {peer.uid} {right}` would let it"


def read_rules(path: Path) -> list[Rule]:
    """The rules of a file, which root and this user alone may write."""
    try:
        found = path.stat()
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidValueError(f"rules {path} cannot be read: {error}") from error
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise InvalidValueError(
            f"rules {path} may be written by others than root: chown root, chmod 644"
        )
    rules = []
    for number, line in enumerate(lines, 1):
        words = line.partition(_COMMENT)[0].split()
        if words:
            rules.append(parse_rule(words, f"{path}:{number}"))
    return rules


def parse_rule(words: list[str], where: str) -> Rule:
    """A rule of its words. Raises InvalidValueError naming where it stands.

    >>> parse_rule(["user", "0", "read"], "rules:1")
    Rule(kind='user', number=0, right='read', containers=False)
    """
    containers = words[3:] == ["container"]
    if len(words) != 3 + containers or words[0] not in ("user", "group"):
        raise InvalidValueError(f"{where}: {' '.join(words)!r} is not user|group NAME read|change")
    if words[2] not in (LOOK, CHANGE):
        raise InvalidValueError(f"{where}: {words[2]!r} is neither read nor change")
    return Rule(words[0], _number(words[0], words[1], where), words[2], containers)


def _number(kind: str, name: str, where: str) -> int:
    if name.isascii() and name.isdigit() and len(name) <= 10:
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid if kind == "user" else grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):  # the latter with a NUL in it
        raise InvalidValueError(f"{where}: there is no {kind} {name[:40]}") from None
