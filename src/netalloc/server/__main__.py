"""The daemon as a program: python -m netalloc.server, or netalloc serve."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

_NEEDED = ("httptools", "msgspec", "prometheus_client", "starlette", "uvicorn", "uvloop")
_DOC = """Run the daemon: the store kept open, its networks watched and repaired,
two sockets.

SIGTERM ends it when the calls under way are done; SIGHUP has the rules
read anew."""


def parser() -> argparse.ArgumentParser:
    """What the daemon may be told."""
    made = argparse.ArgumentParser(
        "netalloc serve", description=_DOC, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--store", type=Path, metavar="PATH", help="the store's file")
    made.add_argument(
        "--socket", type=Path, metavar="PATH", help="of the JSON API; /run/netalloc.sock for root"
    )
    made.add_argument(
        "--line", type=Path, metavar="PATH",
        help="of the line protocol; /run/netalloc-line.sock for root",
    )  # fmt: skip
    made.add_argument("--group", metavar="NAME", help="may change, and reach the sockets")
    made.add_argument("--rules", type=Path, metavar="FILE", help="who may read and who may change")
    made.add_argument("--page", metavar="IP:PORT", help="serve the page at this loopback address")
    made.add_argument(
        "--patience", type=float, default=10.0, metavar="S",
        help="seconds for a request to come whole; 10 unless given",
    )  # fmt: skip
    made.add_argument("--log-format", choices=("auto", "json", "text"), default="auto")
    made.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    return made


def main() -> int:
    """Run it; the exit status."""
    given = vars(parser().parse_args())
    missing = _missing()
    if missing:
        sys.stderr.write(f"netalloc: the daemon needs {missing}: pip install 'netalloc[server]'\n")
        return 1
    from netalloc.operations.outcomes import is_expected, message, outcome
    from netalloc.server import logs
    from netalloc.server.run import Daemon, Settings

    form, level = given.pop("log_format"), given.pop("log_level")
    if form == "auto":
        form = "text" if sys.stderr.isatty() else "json"
    logs.configure(form, level)
    try:
        Daemon(Settings(**given)).run()
    except Exception as error:
        if not is_expected(error):
            raise
        sys.stderr.write(f"netalloc: {message(error)}\n")
        return outcome(error).exit_status
    return 0


def _missing() -> str:
    """The packages that are not there, in words."""
    from importlib.util import find_spec

    return " and ".join([name for name in _NEEDED if find_spec(name) is None])


if __name__ == "__main__":
    sys.exit(main())
