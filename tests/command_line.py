"""The command line as a process of its own, as people and programs call it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RUN = [sys.executable, "-c", "from netalloc.cli.entry import main; main()"]


@dataclass
class Answer:
    """What a call printed, and its exit status."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        return json.loads(self.err)["error"]


@dataclass
class CommandLine:
    """Calls over one store; `columns` is the terminal's width."""

    store: Path
    columns: int = 200
    environment: dict[str, str] = field(default_factory=dict)

    def __call__(self, *arguments: str, input: str | None = None) -> Answer:
        done = subprocess.run(
            [*RUN, *arguments],
            input=input,
            capture_output=True,
            text=True,
            timeout=120,
            env={
                **os.environ,
                "NETALLOC_STORE": str(self.store),
                "COLUMNS": str(self.columns),
                "TZ": "UTC",
                **self.environment,
            },
            check=False,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    def well(self, *arguments: str, input: str | None = None) -> str:
        """What a call that succeeds prints."""
        answer = self(*arguments, input=input)
        assert answer.status == 0, (arguments, answer)
        return answer.out

    def json(self, *arguments: str) -> Any:
        """The same with --json."""
        return json.loads(self.well(*arguments, "--json"))
