"""The tables of every version of the store file, as text that no later change may touch.

What a file of a version looks like was settled by the edition that made it. So nothing here
is made out of the records of today: a change of them is a new version with a text of its
own, and a step of migrations.py that leads there.
"""

VERSION = 5

_ONE = """
CREATE TABLE state (id INTEGER PRIMARY KEY, sequence INTEGER, boot TEXT, counters TEXT, crc
    INTEGER);
CREATE TABLE bitmap (name TEXT PRIMARY KEY, size TEXT, cursor TEXT, count TEXT, full BLOB, mixed
    BLOB, crc INTEGER);
CREATE TABLE leaf (name TEXT, number INTEGER, data BLOB, crc INTEGER, PRIMARY KEY (name, number));
CREATE TABLE network ("number", "bridge", "spec", "crc", PRIMARY KEY ("number")) WITHOUT ROWID;
CREATE TABLE lease ("network", "ordinal", "generation", "publications", "owner", "key",
    "since_ns", "crc", PRIMARY KEY ("network", "ordinal")) WITHOUT ROWID;
CREATE INDEX lease_0 ON lease ("network", "owner", "key");
CREATE TABLE label ("network", "ordinal", "name", "value", "crc", PRIMARY KEY ("network",
    "ordinal", "name")) WITHOUT ROWID;
CREATE INDEX label_0 ON label ("network", "name", "value");
CREATE TABLE publication ("network", "ordinal", "host_ip", "protocol", "port", "width",
    "dest_port", "crc", PRIMARY KEY ("network", "ordinal", "host_ip", "protocol", "port")) WITHOUT
    ROWID;
CREATE TABLE reservation ("network", "ordinal", "owner", "since_ns", "crc", PRIMARY KEY
    ("network", "ordinal")) WITHOUT ROWID;
CREATE INDEX reservation_0 ON reservation ("network", "owner");
CREATE TABLE cooling ("network", "ordinal", "ready_ns", "crc", PRIMARY KEY ("network", "ordinal"))
    WITHOUT ROWID;
CREATE INDEX cooling_0 ON cooling ("network", "ready_ns");
CREATE TABLE past ("number", "network", "ordinal", "generation", "owner", "key", "start_ns",
    "end_ns", "crc", PRIMARY KEY ("number")) WITHOUT ROWID;
CREATE INDEX past_0 ON past ("network", "ordinal");
"""

# Former holders, for stickiness, and what gc has seen once.
_TWO_ADDS = """
CREATE TABLE former ("network", "ordinal", "owner", "key", "until_ns", "crc", PRIMARY KEY
    ("network", "ordinal")) WITHOUT ROWID;
CREATE INDEX former_0 ON former ("network", "owner", "key");
CREATE INDEX former_1 ON former ("network", "until_ns");
CREATE TABLE suspect ("network", "ordinal", "generation", "seen_ns", "crc", PRIMARY KEY
    ("network", "ordinal")) WITHOUT ROWID;
"""

# A network with all of its configuration, and the names of today.
_THREE = """
CREATE TABLE state (id INTEGER PRIMARY KEY, sequence INTEGER, boot TEXT, counters TEXT, crc
    INTEGER);
CREATE TABLE bitmap (name TEXT PRIMARY KEY, size TEXT, cursor TEXT, count TEXT, full BLOB, mixed
    BLOB, crc INTEGER);
CREATE TABLE leaf (name TEXT, number INTEGER, data BLOB, crc INTEGER, PRIMARY KEY (name, number));
CREATE TABLE network ("number", "name", "bridge", "mode", "subnet", "subnet6", "exclude",
    "backend", "ports", "cooldown_ns", "sticky_ns", "forward", "crc", PRIMARY KEY ("number"))
    WITHOUT ROWID;
CREATE INDEX network_0 ON network ("name");
CREATE TABLE lease ("network", "ordinal", "generation", "publications", "owner", "key",
    "since_ns", "crc", PRIMARY KEY ("network", "ordinal")) WITHOUT ROWID;
CREATE INDEX lease_0 ON lease ("network", "owner", "key");
CREATE TABLE label ("network", "ordinal", "name", "value", "crc", PRIMARY KEY ("network",
    "ordinal", "name")) WITHOUT ROWID;
CREATE INDEX label_0 ON label ("network", "name", "value");
CREATE TABLE publication ("network", "ordinal", "host_ip", "protocol", "host_port", "port_count",
    "container_port", "crc", PRIMARY KEY ("network", "ordinal", "host_ip", "protocol",
    "host_port")) WITHOUT ROWID;
CREATE INDEX publication_0 ON publication ("protocol", "host_port");
CREATE TABLE reservation ("network", "ordinal", "owner", "since_ns", "crc", PRIMARY KEY
    ("network", "ordinal")) WITHOUT ROWID;
CREATE INDEX reservation_0 ON reservation ("network", "owner");
CREATE TABLE cooldown ("network", "ordinal", "ready_ns", "crc", PRIMARY KEY ("network",
    "ordinal")) WITHOUT ROWID;
CREATE INDEX cooldown_0 ON cooldown ("network", "ready_ns");
CREATE TABLE last_holder ("network", "ordinal", "owner", "key", "until_ns", "crc", PRIMARY KEY
    ("network", "ordinal")) WITHOUT ROWID;
CREATE INDEX last_holder_0 ON last_holder ("network", "owner", "key");
CREATE INDEX last_holder_1 ON last_holder ("network", "until_ns");
CREATE TABLE gc_candidate ("network", "ordinal", "generation", "seen_ns", "crc", PRIMARY KEY
    ("network", "ordinal")) WITHOUT ROWID;
CREATE TABLE ended_lease ("number", "network", "ordinal", "generation", "owner", "key",
    "start_ns", "end_ns", "crc", PRIMARY KEY ("number")) WITHOUT ROWID;
CREATE INDEX ended_lease_0 ON ended_lease ("network", "ordinal");
"""

# What changes every time lies in one row, and bitmaps in rows of bounded size.
_FOUR_MAKES = """
CREATE TABLE state (id INTEGER PRIMARY KEY, sequence INTEGER, boot TEXT, counters TEXT, journals
    TEXT, crc INTEGER);
CREATE TABLE bitmap (name TEXT PRIMARY KEY, size TEXT, cursor TEXT, count TEXT, first INTEGER, crc
    INTEGER) WITHOUT ROWID;
CREATE TABLE span (name TEXT, first INTEGER, stop INTEGER, following INTEGER, bits BLOB, crc
    INTEGER, PRIMARY KEY (name, first)) WITHOUT ROWID;
"""
_THREE_KEEPS = _THREE[_THREE.index("CREATE TABLE network") :]

# How a network keeps its containers apart, which of them reach each other nevertheless, and what
# a lease is on the machine.
_FIVE_MAKES = """
CREATE TABLE network ("number", "name", "bridge", "mode", "subnet", "subnet6", "exclude",
    "backend", "ports", "cooldown_ns", "sticky_ns", "forward", "isolation", "services", "crc",
    PRIMARY KEY ("number")) WITHOUT ROWID;
CREATE INDEX network_0 ON network ("name");
"""
_FIVE_ADDS = """
CREATE TABLE attachment ("network", "ordinal", "generation", "kind", "interface", "index",
    "namespace", "peer", "mac", "mtu", "made", "crc", PRIMARY KEY ("network", "ordinal"))
    WITHOUT ROWID;
CREATE INDEX attachment_0 ON attachment ("index");
CREATE TABLE allowance ("network", "ordinal", "other", "crc", PRIMARY KEY ("network", "ordinal",
    "other")) WITHOUT ROWID;
CREATE INDEX allowance_0 ON allowance ("network", "other");
"""
_FIVE_KEEPS = _THREE[_THREE.index("CREATE TABLE lease") :]

_TABLES = {
    1: _ONE,
    2: _ONE + _TWO_ADDS,
    3: _THREE,
    4: _FOUR_MAKES + _THREE_KEEPS,
    5: _FOUR_MAKES + _FIVE_MAKES + _FIVE_KEEPS + _FIVE_ADDS,
}


def statements(version: int = VERSION) -> list[str]:
    """What makes the tables of a version out of an empty file."""
    return [" ".join(text.split()) for text in _TABLES[version].split(";") if text.strip()]


def made_by_4() -> list[str]:
    """The tables that version 4 has in place of those of version 3."""
    return statements(4)[:3]


def made_by_5() -> list[str]:
    """The tables that version 5 has in place of those of version 4, and besides."""
    made = statements(5)
    return made[3:5] + made[-4:]


def added_by_2() -> list[str]:
    """What version 2 has more than version 1."""
    return statements(2)[len(statements(1)) :]
