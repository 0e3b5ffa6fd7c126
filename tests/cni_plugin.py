"""A CNI plugin called as a runtime calls it: variables, a configuration, an answer."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

IPAM = [sys.executable, "-c", "from netalloc.cni.ipam import main; main()"]


@dataclass
class Plugin:
    """A plugin with a configuration; calls are for `c0`'s eth0 unless they say otherwise."""

    config: dict[str, Any]
    command: list[str] = field(default_factory=lambda: IPAM)
    environment: dict[str, str] = field(default_factory=dict)

    def __call__(
        self, command: str, container: str = "c0", ifname: str = "eth0", **more: Any
    ) -> tuple[int, Any]:
        """The exit status, and what it printed as JSON, None for nothing."""
        variables = {"CNI_COMMAND": command, "CNI_PATH": "/usr/lib/cni"}
        if command not in ("GC", "STATUS", "VERSION"):
            variables |= {"CNI_CONTAINERID": container, "CNI_IFNAME": ifname, "CNI_NETNS": "/x"}
        variables |= {name: value for name, value in more.items() if name.startswith("CNI_")}
        extra = {
            name.replace("__", "."): v for name, v in more.items() if not name.startswith("CNI_")
        }
        clean = {k: v for k, v in os.environ.items() if not k.startswith("CNI_")}
        done = subprocess.run(
            self.command,
            input=json.dumps({**self.config, **extra}).encode(),
            capture_output=True,
            env={**clean, **self.environment, **variables},
            timeout=60,
            check=False,
        )
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        return done.returncode, json.loads(done.stdout) if done.stdout.strip() else None

    def well(self, command: str, *arguments: str, **more: Any) -> Any:
        """What a call that succeeds prints."""
        status, answer = self(command, *arguments, **more)
        assert status == 0, answer
        return answer

    def refused(self, command: str, *arguments: str, **more: Any) -> tuple[int, str]:
        """The code and the text of one that fails."""
        status, answer = self(command, *arguments, **more)
        assert status != 0, answer
        assert {"cniVersion", "code", "msg"} <= set(answer), answer
        return answer["code"], answer["msg"]


def config(folder: Path, version: str = "1.1.0", **ipam: Any) -> dict[str, Any]:
    """A configuration whose state is in a folder."""
    section = {"type": "netalloc-ipam", "dataDir": str(folder), **ipam}
    return {"cniVersion": version, "name": "net", "type": "bridge", "ipam": section}
