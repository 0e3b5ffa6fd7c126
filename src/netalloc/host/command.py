"""The only place that starts a process.

subprocess takes 8 ms to import: a CNI plugin that adds a map element does without.
"""

import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from netalloc.errors import CommandError

if TYPE_CHECKING:
    import subprocess

# linux/capability.h. iptables-legacy opens a raw socket, hence the second one.
_CAPABILITIES = {12: "CAP_NET_ADMIN", 13: "CAP_NET_RAW"}


def run(command: Sequence[str], input: str | Iterable[str] | None = None) -> str:
    """Run a command to its end and return what it printed.

    `input` goes to its standard input; given in pieces, the command reads the first ones
    while the later ones are made. Raises CommandError with the whole command line, the exit
    status and what it said on stderr; one that says so when the command is not on PATH; and
    one that names the missing privilege where that explains the failure. An error in making
    the pieces kills the command before it has seen the end of its input.

    >>> run(["echo", "hello"])
    'hello\\n'
    >>> run(["cat"], (word for word in ("all ", "of ", "it")))
    'all of it'
    """
    import subprocess

    try:
        # surrogateescape: the comments in other people's rules need not be UTF-8.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="surrogateescape",
        )
    except FileNotFoundError:
        raise CommandError(f"command not found: {command[0]} is not on PATH", command) from None
    except OSError as error:
        raise CommandError(f"{command[0]} could not be started: {error}", command) from error
    with process:
        try:
            if input is None or isinstance(input, str):
                output, stderr = process.communicate(input)
            else:
                output, stderr = _feed(process, input)
        except BaseException:
            process.kill()
            raise
    if process.returncode == 0:
        return output
    stderr = stderr.strip()
    message = f"`{' '.join(command)}` failed with status {process.returncode}: {stderr}"
    if lacking := missing_privileges():
        message += f" (this process lacks {' and '.join(lacking)})"
    raise CommandError(message, command, process.returncode, stderr)


def _feed(process: "subprocess.Popen[str]", pieces: Iterable[str]) -> tuple[str, str]:
    """Write from a thread, so that a command that talks while it reads is never stuck."""
    failure: list[BaseException] = []
    stdin, process.stdin = process.stdin, None  # communicate would close it
    assert stdin is not None

    def feed() -> None:
        try:
            stdin.writelines(pieces)
        except BrokenPipeError:
            pass  # it gave up, and its status says why
        except BaseException as error:
            failure.append(error)
            process.kill()
        finally:
            with suppress(BrokenPipeError):
                stdin.close()

    thread = threading.Thread(target=feed, name="netalloc-feed")
    thread.start()
    try:
        return process.communicate()
    finally:
        thread.join()
        if failure:
            raise failure[0]


def missing_privileges() -> list[str]:
    """Which of the capabilities that rules and interfaces need this thread does not have."""
    for line in Path("/proc/thread-self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            held = int(line.split()[1], 16)
            return [name for bit, name in _CAPABILITIES.items() if not held >> bit & 1]
    return []
