"""A host of its own for a demo: network, mount and process namespaces that end with it."""

import json
import os
import shutil
import signal
import subprocess
import sys

from netalloc.host.command import run

INSIDE = "NETALLOC_DEMO_INSIDE"


def enter_private_host() -> None:
    """Start again as the first program of a private host, unless this is it already."""
    if INSIDE in os.environ:
        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGTERM, stop)  # the first process of a namespace has no default
        return
    unshare = shutil.which("unshare", path=os.environ.get("PATH", "") + ":/usr/bin:/bin")
    if unshare is None:
        sys.exit("demo: unshare is not on PATH: install Debian's util-linux")
    command = [unshare, "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid() != 0:
        command.append("--map-root-user")
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode != 0:
        sys.exit(
            "demo: network namespaces are refused here: run `sudo make demo`, or allow user\n"
            "namespaces to users without root: sudo sysctl kernel.unprivileged_userns_clone=1"
        )
    os.environ[INSIDE] = "yes"
    os.environ["PATH"] += ":/usr/sbin:/sbin"  # Debian gives users no sbin, where iptables is
    os.execv(unshare, [*command, sys.executable, *sys.argv])


def stop(*_: object) -> None:
    """Leave at once: with its first process the private host goes, and all that is on it."""
    os.write(2, b"\ndemo: stopped, and the private host is gone with all that was on it\n")
    os._exit(1)


def rules() -> int:
    """How many rules and map elements the kernel holds, of all programs."""
    count = 0
    for item in json.loads(run(["nft", "--json", "list", "ruleset"]))["nftables"]:
        count += ("rule" in item) + len(item.get("map", {}).get("elem", ()))
    # Without it the kernel has no legacy iptables; in a user namespace no one may have rules there.
    for names, command in (
        ("/proc/net/ip_tables_names", "iptables-legacy-save"),
        ("/proc/net/ip6_tables_names", "ip6tables-legacy-save"),
    ):
        if os.access(names, os.R_OK) and shutil.which(command):
            count += sum(line.startswith("-A") for line in run([command]).splitlines())
    return count
