"""The only place that starts a process.

subprocess takes 8 ms to import: a CNI plugin that adds a map element does without.
"""

from collections.abc import Sequence
from pathlib import Path

from netalloc.errors import CommandError

# linux/capability.h. iptables-legacy opens a raw socket, hence the second one.
_CAPABILITIES = {12: "CAP_NET_ADMIN", 13: "CAP_NET_RAW"}


def run(command: Sequence[str], input: str | None = None) -> str:
    """Run a command to its end and return what it printed.

    `input` goes to its standard input. Raises CommandError with the whole command line,
    the exit status and what it said on stderr; one that says so when the command is not
    on PATH; and one that names the missing privilege where that explains the failure.

    >>> run(["echo", "hello"])
    'hello\\n'
    """
    import subprocess

    try:
        # surrogateescape: the comments in other people's rules need not be UTF-8.
        done = subprocess.run(
            command,
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            check=False,
        )
    except FileNotFoundError:
        raise CommandError(f"command not found: {command[0]} is not on PATH", command) from None
    except OSError as error:
        raise CommandError(f"{command[0]} could not be started: {error}", command) from error
    if done.returncode == 0:
        return done.stdout
    stderr = done.stderr.strip()
    message = f"`{' '.join(command)}` failed with status {done.returncode}: {stderr}"
    if lacking := missing_privileges():
        message += f" (this process lacks {' and '.join(lacking)})"
    raise CommandError(message, command, done.returncode, stderr)


def missing_privileges() -> list[str]:
    """Which of the capabilities that rules and interfaces need this thread does not have."""
    for line in Path("/proc/thread-self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            held = int(line.split()[1], 16)
            return [name for bit, name in _CAPABILITIES.items() if not held >> bit & 1]
    return []
