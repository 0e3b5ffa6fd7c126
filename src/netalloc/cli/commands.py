"""The commands by name, and the help that lists them; click is not needed for either.

What it takes to load click, 25 ms, is most of what such a call would cost.
"""

# Each command: its module, the name there, and its line in the list of all.
COMMANDS = {
    "allocate": ("leases", "Give an owner an address, ports, and an interface."),
    "attach": ("leases", "Put an address into a network namespace, or make a tap."),
    "check": ("upkeep", "Say what is wrong with the store and the kernel."),
    "cni": ("serving", "Install the CNI plugins; take over host-local's addresses."),
    "completion": ("completion", "Print what a shell needs to complete commands."),
    "detach": ("leases", "Take an address off the machine; it stays held."),
    "doctor": ("health", "Say which limit of this host is near."),
    "export": ("documents", "Write networks, leases and reservations as JSON."),
    "gc": ("upkeep", "Give back what belongs to owners that are not alive."),
    "history": ("looking", "Say what held an address, and when."),
    "import": ("documents", "Make what an export says, all or nothing."),
    "ls": ("looking", "List the networks, or what is held in one."),
    "map": ("drawing", "Draw how a network is used."),
    "network": ("networks", "Make, list, show and remove networks."),
    "publish": ("leases", "Lead host ports to what an owner holds."),
    "reconcile": ("upkeep", "Make the kernel agree with the store."),
    "release": ("leases", "Give back what an owner holds."),
    "repair": ("upkeep", "Mend the store, and the kernel after it."),
    "reserve": ("leases", "Keep an address for an owner, or from everyone."),
    "serve": ("serving", "Run the daemon."),
    "top": ("live", "Watch networks, rates and the busiest owners."),
    "unpublish": ("leases", "Lead host ports there no longer."),
    "unreserve": ("leases", "Keep an address no longer."),
    "who": ("looking", "Say what holds an address or a port, or what an owner holds."),
    "why": ("looking", "Say why something can be had, or cannot."),
}

_HELP = """\
Usage: netalloc [OPTIONS] COMMAND [ARGS]...

  Addresses, host ports and port mappings of this host's containers.

  What is held is in $NETALLOC_STORE, or /var/lib/netalloc/host.db for root
  and ~/.local/state/netalloc/host.db for others; --store names another one.

Options:
  --store     The store's file; also after a command.
  --version   Show the version.
  -h, --help  Show this message; after a command, that one's.

Commands:
{commands}

  Exit status: 0 done; 1 refused, or a check found something; 2 bad usage or
  value; 3 nothing left; 4 in use; 5 not there; 6 stale; 7 quota; 8 a command
  failed; 9 interface; 10 out of range; 11 store; 12 closed; 13 not permitted."""


def help_text() -> str:
    """What `netalloc --help` prints, within 80 columns."""
    lines = [f"  {name:<10}  {line}" for name, (_, line) in sorted(COMMANDS.items())]
    return _HELP.format(commands="\n".join(lines))
