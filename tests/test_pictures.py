"""Pictures of a network: what they count, beside what the view says of each address; what they
show, read back from the pixels, the paths and the characters."""

import ast
import random
import re
import subprocess
import sys
from io import BytesIO
from ipaddress import ip_network
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from netalloc import (
    InvalidValueError,
    NetworkManager,
    Networks,
    NetworkView,
    NotAllocatedError,
    OutOfRangeError,
)
from netalloc.ipam import addresses
from netalloc.ipam.addresses import Addresses
from netalloc.ipam.clock import SECOND, boot_clock
from netalloc.ipam.networks import get
from netalloc.pictures import hilbert
from netalloc.pictures.blocks import blocks
from netalloc.pictures.captions import number
from netalloc.pictures.colours import (
    COOLING,
    DARK,
    EXCLUDED,
    FREE,
    LIGHT,
    RESERVED,
    STEPS,
    USED,
    heat,
    kinds,
    palette,
)
from netalloc.pictures.png import png
from netalloc.pictures.survey import coarser, survey
from netalloc.pictures.svg import svg
from netalloc.store.memory import MemoryStore
from netalloc.store.sqlite.store import SqliteStore

PACKAGE = Path(hilbert.__file__).parents[1]
ARRAYS = ("used", "free", "cooling", "reserved", "excluded")


# ---- the curve


@pytest.mark.parametrize("order", range(9))
def test_the_curve_goes_through_every_cell_once_from_neighbour_to_neighbour(order):
    cells = np.arange(4**order)
    x, y = hilbert.places(cells, order)
    assert len(set(zip(x.tolist(), y.tolist(), strict=True))) == 4**order
    assert (np.abs(np.diff(x)) + np.abs(np.diff(y)) == 1).all()
    assert (hilbert.ordinals(x, y, order) == cells).all()
    assert (hilbert.map_of(order)[y, x] == cells).all()
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 2**order - 1, 0)


@pytest.mark.parametrize("order", [1, 2, 5])
def test_an_aligned_block_is_the_rectangle_around_its_cells(order):
    x, y = hilbert.places(np.arange(4**order), order)
    for bits in range(2 * order + 1):
        for first in range(0, 4**order, 1 << bits):
            own = slice(first, first + (1 << bits))
            found = hilbert.block(first, 1 << bits, order)
            assert (found.x, found.y) == (x[own].min(), y[own].min())
            assert found.x + found.width - 1 == x[own].max()
            assert found.y + found.height - 1 == y[own].max()
            assert found.width * found.height == 1 << bits
    chosen = random.Random(order)
    for _ in range(50):
        first = chosen.randrange(4**order)
        count = chosen.randint(1, 4**order - first)
        cells = set()
        for place in hilbert.blocks(first, count, order):
            for row in hilbert.map_of(order)[place.y : place.y + place.height]:
                cells.update(row[place.x : place.x + place.width].tolist())
        assert cells == set(range(first, first + count))


# ---- the counts


def states_of(view, network, subnet):
    """Of each address what the view says of it, one by one."""
    words = {
        "is held by": "used",
        "is cooling down": "cooling",
        "reserved for": "reserved",
        "is free": "free",
        "is the gateway": "excluded",
        "never given": "excluded",
        "no counterpart": "excluded",
        "is not given": "excluded",
    }
    for ip in ip_network(subnet):
        why = view.why(ip)
        yield next(state for word, state in words.items() if word in why)


def expected(states, cell):
    cells = [states[at : at + cell] for at in range(0, len(states), cell)]
    return {name: [part.count(name) for part in cells] for name in ARRAYS}


def counted(found):
    return {name: getattr(found, name).tolist() for name in ARRAYS}


def live(networks, name, seed, *configured, **options):
    """A network in which every state of an address is found, and some of them overlap."""
    chosen, made = random.Random(seed), networks.create(name, *configured, **options)
    held = [made.allocate(f"c{n}") for n in range(60)]
    some = chosen.sample(held, 30)
    for one in some[:10]:
        made.reserve(one.address, one.owner)  # held as well
    for one in some[5:25]:
        one.release()  # five of them are reserved, and cool down
    for n in (90, 91, 200):
        made.reserve(f"10.88.0.{n}" if held[0].ip.version == 4 else f"fd00::{n:x}", "db")
    return made


CONFIGURED = {
    "v4": (("10.88.0.1/24",), ["10.88.0.64/28", "10.88.0.100"], "10.88.0.0/24"),
    "v6": (("fd00::1/120",), ["fd00::40/124"], "fd00::/120"),
    "dual": ((("10.88.0.9/24", "fd00::9/64"),), ["10.88.0.64/28", "fd00::80"], "10.88.0.0/24"),
    "small": ((("10.88.0.1/24", "fd00::1/120"),), ["fd00::f0/125"], "10.88.0.0/24"),
}


@pytest.mark.parametrize("kind", ["memory", "file"])
@pytest.mark.parametrize("which", CONFIGURED)
def test_counts_are_what_is_said_of_each_address(which, kind, tmp_path):
    configured, exclude, subnet = CONFIGURED[which]
    store = MemoryStore() if kind == "memory" else SqliteStore(tmp_path / "host.db")
    options = {"bridge": "br1", "backend": "null", "exclude": exclude, "cooldown": 3600}
    with Networks(store) as networks:
        live(networks, "web", 5, *configured, **options)
        views = [NetworkView(store)]
        views += [NetworkView(tmp_path / "host.db")] if kind == "file" else []
        for view in views:
            states = list(states_of(view, "web", subnet))
            assert set(states) == set(ARRAYS)
            for order, cell in ((None, 1), (3, 4), (2, 16), (0, 256)):
                found = survey(view, "web", cells_order=order)
                assert (found.cell, 4**found.order * found.cell) == (cell, 256)
                assert counted(found) == expected(states, cell)
                totals = found.totals._asdict()
                assert totals.pop("addresses") == 256 == sum(totals.values())
                assert totals == {name: states.count(name) for name in ARRAYS}
            usage = view.usage()[0]
            assert (usage.held, usage.free) == (found.totals.used, found.totals.free)
            for count in (1, 2, 16, 32, 128):
                first = 64 // count * count
                part = survey(view, "web", first=first, count=count)
                inside = states[first : first + count]
                assert counted(part) == expected(inside, part.cell)
                assert part.totals[:2] == (count, inside.count("used"))
            assert part.part == str(ip_network(f"{ip_network(subnet)[0]}/{part.prefixlen}"))


def test_coarser_cells_count_the_same():
    with memory_network("10.0.0.1/22", 300) as view:
        fine = survey(view, "web")
        assert fine.order == 5
        for order in range(6):
            merged, asked = coarser(fine, order), survey(view, "web", cells_order=order)
            assert (merged.order, merged.cell) == (asked.order, asked.cell)
            assert counted(merged) == counted(asked)


def test_what_has_cooled_is_free_again(monkeypatch):
    with memory_network("10.0.0.1/24", 5, cooldown=10) as view:
        view.manager.reserve("10.0.0.2", "c0")
        for held in view.manager.interfaces()[:3]:
            held.release()
        assert survey(view, "web").cooling[:6].tolist() == [0, 0, 1, 1, 1, 0]
        monkeypatch.setattr(addresses, "boot_clock", lambda: boot_clock() + 11 * SECOND)
        found = survey(view, "web")
        assert found.totals[1:5] == (2, 250, 0, 1)
        assert found.reserved[:4].tolist() == [0, 0, 1, 0]


def test_after_a_boot_only_reservations_are_left(tmp_path, monkeypatch):
    path = tmp_path / "host.db"
    with NetworkManager("br1", network="10.0.0.1/24", backend="null", store=path) as manager:
        manager.allocate("web")
        manager.reserve("10.0.0.9", "db")
        assert survey(NetworkView(path), "br1").totals.used == 1
    view = NetworkView(path)
    view._store.boot = "another one"
    found = survey(view, "br1")
    assert found.totals == (256, 0, 252, 0, 1, 3)
    assert found.used.sum() == 0 and found.reserved[9] == 1


class View(NetworkView):
    """A view of a store in memory, with the manager that changes it."""

    def __init__(self, manager, store):
        super().__init__(store)
        self.manager = manager

    def close(self):
        self.manager.close()


def memory_network(network, held=0, **options):
    store = MemoryStore()
    options = {"name": "web", "backend": "null", **options}
    manager = NetworkManager("br1", network=network, store=store, **options)
    for n in range(held):
        manager.allocate(f"c{n}")
    return View(manager, store)


def fill(store, name, ordinals):
    """Lease these, as far as pictures see it: with a record for the first one alone."""

    def change(tx):
        network = get(tx, name)
        bitmap = Addresses.of(network).bitmap(tx)
        for ordinal in ordinals:
            if ordinal not in bitmap:
                bitmap.reserve(ordinal)

    store.run("fill", change)


def at_random(size, share=0.5, seed=1):
    return np.flatnonzero(np.random.default_rng(seed).random(size) < share)


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_whole_8_is_counted(kind, tmp_path):
    store = MemoryStore() if kind == "memory" else SqliteStore(tmp_path / "host.db")
    with NetworkManager("br1", network="10.0.0.1/8", backend="null", store=store) as manager:
        manager.allocate()
        chosen = at_random(2**24 - 3, 0.02)
        fill(store, "br1", chosen.tolist())
        found = survey(NetworkView(store), "br1")
        held = np.union1d(chosen, [0]) + 2  # after the network's own address and the gateway
        assert (found.order, found.cell, found.totals.used) == (8, 256, len(held))
        assert (found.used == np.bincount(held >> 8, minlength=65536)).all()
        part = survey(NetworkView(store), "br1", first=5 << 16, count=1 << 16)
        assert (part.part, part.cell) == ("10.5.0.0/16", 1)
        assert (part.used == np.isin(np.arange(5 << 16, 6 << 16), held)).all()


# ---- IPv6


def test_of_a_large_ipv6_network_the_used_part_is_drawn():
    with memory_network("fd00::1/64", exclude=["fd00::ffff:0:0:0/80"]) as view:
        assert survey(view, "web").part == "fd00::/120"  # nothing is in use
        view.manager.allocate()
        view.manager.allocate(ip="fd00::fff0")
        found = survey(view, "web")
        assert (found.first, found.count, found.cell, found.prefixlen) == (0, 65536, 1, 112)
        assert found.totals.used == 2 == found.used.sum()
        assert found.totals.addresses == 2**64 == sum(found.totals[1:])
        assert found.totals.excluded == 2**48 + 2  # the gateway, and the routers' address
        texts = svg(found), blocks(found, width=80, height=24, colour=False)
        for text in texts:
            assert "fd00::/112: first 65,536 of 18 quintillion addresses" in text
        view.manager.reserve("fd00:0:0:0:8000::")
        assert survey(view, "web").count == 2**64
        whole = survey(view, "web", cells_order=1)
        assert (whole.used.tolist(), whole.reserved.tolist()) == ([2, 0, 0, 0], [0, 0, 1, 0])
        assert whole.excluded.tolist() == [2, 0, 0, 2**48]
        part = survey(view, "web", first=2**63, count=2**10)
        assert (part.part, part.totals[:5]) == ("fd00::8000:0:0:0/118", (1024, 0, 1023, 0, 1))
        with pytest.raises(OutOfRangeError, match="18446744073709551616"):
            survey(view, "web", cells_order=0)


def test_a_part_that_does_not_begin_with_the_network_is_aligned():
    with memory_network("fd00::1/64") as view:
        for ip in ("fd00::5:0", "fd00::5:4321"):
            view.manager.allocate(ip=ip)
        found = survey(view, "web")
        assert (found.part, found.first, found.totals.used) == ("fd00::5:0/112", 5 << 16, 2)
        assert "fd00::5:0/112: 65,536 of 18 quintillion addresses" in svg(found)


def test_numbers_are_for_people():
    assert [number(n) for n in (0, 999, 65536, 10**12 - 1, 10**12, 2**64)] == [
        "0", "999", "65,536", "999,999,999,999", "1 trillion", "18 quintillion",
    ]  # fmt: skip


# ---- what is refused


def test_a_part_that_is_none_is_refused():
    with memory_network("10.0.0.1/24") as view:
        for first, count, error, text in (
            (0, 3, InvalidValueError, "count 3 is not a power of two"),
            (8, 16, InvalidValueError, "first 8 is not a multiple of the count 16"),
            (4, None, InvalidValueError, "first 4 needs a count"),
            (0, 512, InvalidValueError, "count 512 is not within 1 to 256"),
            (256, 1, InvalidValueError, "first 256 is not within 0 to 255"),
            (-1, 1, InvalidValueError, "first -1"),
            ("0", 1, InvalidValueError, "first '0'"),
            (0, True, InvalidValueError, "count True"),
        ):
            with pytest.raises(error, match=re.escape(text)):
                survey(view, "web", first=first, count=count)
        for order in (-1, 13, 2.0):
            with pytest.raises(InvalidValueError, match="cells_order"):
                survey(view, "web", cells_order=order)
        with pytest.raises(NotAllocatedError, match="no network other"):
            survey(view, "other")
        for wrong in (5, "text", [(0, 1)], [(0, 0, "x")], [(0, 1, None)]):
            with pytest.raises(InvalidValueError):
                survey(view, "web", blocks=wrong)
        found = survey(view, "web")
        for wrong in ({"size": 64}, {"size": 9000}, {"size": "1"}, {"theme": "blue"}):
            for draw in (png, svg):
                with pytest.raises(InvalidValueError):
                    draw(found, **wrong)
        with pytest.raises(InvalidValueError, match="width 19"):
            blocks(found, width=19, height=24, colour=True)
        with pytest.raises(InvalidValueError, match="colour"):
            blocks(found, width=80, height=24, colour=1)
    with memory_network("10.0.0.1/16") as view:
        found = survey(view, "web")
    with pytest.raises(InvalidValueError, match="size 128 is less than the 256 cells"):
        png(found, size=128)


@pytest.mark.parametrize("missing", ["numpy", "PIL"])
def test_what_is_missing_is_named(missing):
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from netalloc import InvalidValueError\n"
        "try:\n"
        "    import netalloc.pictures.png\n"
        "except InvalidValueError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'netalloc[plot]'" in done.stdout


def test_only_pictures_know_numpy_and_pillow():
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        names = [
            name
            for node in ast.walk(tree)
            for name in (
                [one.name for one in node.names]
                if isinstance(node, ast.Import)
                else [node.module]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        ]
        heavy = {name.partition(".")[0] for name in names} & {"numpy", "PIL"}
        assert not heavy or path.parent.name == "pictures", path
    code = "import netalloc, netalloc.manager.view, sys; print({'numpy', 'PIL'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# ---- colours

# How a colour in linear light looks without one of the three cones (Machado, Oliveira, Fernandes,
# IEEE Transactions on Visualization and Computer Graphics 15, 2009): severity 1.
BLIND = {
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "tritanopia": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
    "none": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
}


def lab(colour, matrix):
    """CIE L*a*b*, D65, of a colour as it is seen."""
    parts = np.array(colour) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(matrix) @ linear, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.array(to_xyz) @ linear / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("theme", [DARK, LIGHT], ids=["dark", "light"])
@pytest.mark.parametrize("blind", BLIND)
def test_states_differ_for_all_eyes(theme, blind):
    states = [theme.free, theme.cooling, theme.reserved, theme.excluded]
    states += [heat(theme, 0), heat(theme, 1)]
    seen = [lab(colour, BLIND[blind]) for colour in states]
    for one in range(len(seen)):
        for other in range(one):
            assert np.linalg.norm(seen[one] - seen[other]) > 17, (states[one], states[other])


def test_what_a_cell_is_shown_as():
    with memory_network("10.0.0.1/24", 100, exclude=["10.0.0.192/26"], cooldown=99) as view:
        view.manager.reserve("10.0.0.160")
        for held in view.manager.interfaces()[60:]:
            held.release()
        found = survey(view, "web", cells_order=2)
        assert counted(found)["used"][:5] == [14, 16, 16, 14, 0]
        shown = kinds(found).tolist()
        assert shown[:5] == [USED + STEPS - 1] * 3 + [USED + 14, COOLING]
        assert shown[7:] == [FREE] * 3 + [RESERVED, FREE] + [EXCLUDED] * 4
        for held in view.manager.interfaces()[52:]:
            held.release()  # six are used in a cell where ten cool down
        assert kinds(survey(view, "web", cells_order=2)).tolist()[3] == COOLING


# ---- PNG


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_the_pixels_are_the_states(theme):
    with memory_network("10.0.0.1/24", 7, exclude=["10.0.0.128/25"], cooldown=99) as view:
        view.manager.reserve("10.0.0.20")
        view.manager.interfaces()[6].release()
        found = survey(view, "web")
        image = Image.open(BytesIO(png(found, size=512, theme=theme)))
        assert image.width == 512 + 2 * 16 and 512 < image.height < 800
        pixels = image.convert("RGB").load()
        colours = DARK if theme == "dark" else LIGHT
        assert pixels[0, 0] == pixels[image.width - 1, image.height - 1] == colours.page
        x, y = hilbert.places(np.arange(256), 4)
        # Its map ends where the legend begins: the excluded half is a rectangle of its colour.
        top = next(n for n in range(image.height) if pixels[16 + 500, n] != colours.page)
        states = {
            0: colours.excluded, 1: colours.excluded, 2: heat(colours, 1), 7: heat(colours, 1),
            8: colours.cooling, 9: colours.free, 20: colours.reserved, 127: colours.free,
            128: colours.excluded, 255: colours.excluded,
        }  # fmt: skip
        for cell, colour in states.items():
            place = 16 + int(x[cell]) * 32 + 28, top + int(y[cell]) * 32 + 28
            assert pixels[place] == colour, cell
        for at in (1, 8, 15):  # lines between the cells
            along = [pixels[16 + 5, top + at * 32 + n] == colours.page for n in (-1, 0, 1)]
            assert along == [False, True, False]


@pytest.mark.parametrize("size", [256, 300, 1024, 2000])
def test_a_picture_has_the_size_asked_for(size):
    with memory_network("10.0.0.1/16", 500) as view:
        found = survey(view, "web", blocks=[(0, 4096, "host-1"), (4096, 12288, "host-2")])
        image = Image.open(BytesIO(png(found, size=size)))
        side = size // 256 * 256
        assert image.width == side + 2 * max(10, side // 32)
        assert side < image.height < 2 * side + 100


def test_fleet_blocks_are_outlined():
    with memory_network("10.0.0.1/16", 1) as view:
        plain = survey(view, "web")
        with_blocks = survey(view, "web", blocks=[(16384, 16384, "host-1"), (2**40, 5, "away")])
        images = [
            np.array(Image.open(BytesIO(png(one, size=512))).convert("RGB"))
            for one in (plain, with_blocks)
        ]
        place = hilbert.block(16384, 16384, 8)
        changed = np.argwhere((images[0] != images[1]).any(axis=2))
        assert changed[:, 1].min() == 16 + place.x * 2
        assert changed[:, 1].max() == 16 + (place.x + place.width) * 2 - 1
        assert "host-1" in svg(with_blocks) and "host-1" not in svg(plain)
        assert "away" not in svg(with_blocks)


# ---- SVG

NAMESPACE = "{http://www.w3.org/2000/svg}"


def cells_of(document, order):
    """The colours of the cells of an SVG, read back from its paths."""
    picture = np.full((1 << order, 1 << order), "", dtype=object)
    for path in document.iter(f"{NAMESPACE}path"):
        steps = re.findall(r"m(-?\d+) ?(-?\d+)h(\d+)", path.get("d").removeprefix("M0 .5"))
        x = y = 0
        for right, down, wide in steps:
            x, y = x + int(right), y + int(down)
            assert (picture[y, x : x + int(wide)] == "").all()
            picture[y, x : x + int(wide)] = path.get("stroke")
            x += int(wide)
    return picture


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_an_svg_says_what_the_counts_do_and_needs_nothing_else(theme):
    with memory_network("10.0.0.1/16", 1, exclude=["10.0.99.0/24"], cooldown=99) as view:
        fill(view._store, "web", at_random(2**16 - 3).tolist())
        view.manager.allocate().release()
        found = survey(view, "web")
        text = svg(found, theme=theme)
        assert len(text.encode()) < 1_000_000
        document = ElementTree.fromstring(text)
        table = palette(DARK if theme == "dark" else LIGHT)
        names = ["" if n == FREE else "#" + bytes(colour).hex() for n, colour in enumerate(table)]
        picture = kinds(found)[hilbert.map_of(8)]
        assert (cells_of(document, 8) == np.array(names, dtype=object)[picture]).all()
        assert re.findall(r"(?:href|src|url\(|@import|<script|<image)", text) == []
        assert "10.0.0.0/16" in document.find(f"{NAMESPACE}title").text
        described = document.find(f"{NAMESPACE}desc").text
        for count in found.totals[1:]:
            assert f"{count:,}" in described
            assert any(f"{count:,}" in "".join(one.itertext()) for one in texts_of(document))


def texts_of(document):
    return list(document.iter(f"{NAMESPACE}text"))


def test_an_svg_of_the_most_different_cells_stays_small():
    with memory_network("10.0.0.1/8", 1) as view:
        chosen = np.random.default_rng(3)
        shares = chosen.random(2**16).repeat(32)  # a share of its own for each cell of 256
        picked = np.flatnonzero(chosen.random(2**21) < shares) * 8
        fill(view._store, "web", picked.tolist())
        found = survey(view, "web", cells_order=10)
        assert (found.order, found.cell) == (10, 16)
        assert len(svg(found)) < 1_000_000  # drawn with 256 cells a side


@pytest.mark.parametrize("network", ["10.0.0.1/16", "fd00::1/112"])
def test_sub_prefixes_and_addresses_are_written_where_they_are(network):
    with memory_network(network, 3) as view:
        whole, part = survey(view, "web"), survey(view, "web", first=512, count=256)
    document, subnet = ElementTree.fromstring(svg(whole)), ip_network(network, strict=False)
    labels = {one.text: one for one in texts_of(document) if one.text.count("/") == 1}
    blocks_of = [*subnet.subnets(new_prefix=subnet.prefixlen + 6)]
    left, top = map_of_svg(document)
    for n, block in enumerate(blocks_of):
        place, label = hilbert.block(n, 1, 3), labels[str(block)]
        assert 0 < float(label.get("x")) - left - place.x * 128 < 20
        assert 0 < float(label.get("y")) - top - place.y * 128 < 20
    document = ElementTree.fromstring(svg(part))
    left, top = map_of_svg(document)
    x, y = hilbert.places(np.arange(256), 4)
    texts = {one.text: one for one in texts_of(document)}
    for n in range(256):
        end = f".{n}" if subnet.version == 4 else f":{512 + n:x}"
        assert left < float(texts[end].get("x")) - x[n] * 64 < left + 32
        assert float(texts[end].get("y")) == top + y[n] * 64 + 32


def map_of_svg(document):
    """Where the map begins: the second rectangle, on the page itself."""
    place = list(document.iter(f"{NAMESPACE}rect"))[1]
    return float(place.get("x")), float(place.get("y"))


def test_a_label_is_no_markup():
    with memory_network("10.0.0.1/24", name="a-b") as view:
        text = svg(survey(view, "a-b", blocks=[(0, 256, "<script>&")]))
        assert "<script>&" in [one.text for one in texts_of(ElementTree.fromstring(text))]


# ---- the terminal

CODE = re.compile(r"\x1b\[([\d;]*)m")


@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize("network", ["10.0.0.1/8", "10.0.0.1/24", "10.0.0.1/29", "10.0.0.1/31"])
def test_a_terminal_s_width_is_kept(network, colour):
    network = network if not network.endswith("31") else "10.0.0.0/31"
    with memory_network(network, 2, name="a-network-with-a-long-name") as view:
        found = survey(view, "a-network-with-a-long-name")
        sizes = [(20, 1), (20, 30), (39, 20), (63, 90), (64, 90), (80, 24), (200, 60), (520, 300)]
        for width, height in sizes:
            lines = CODE.sub("", blocks(found, width=width, height=height, colour=colour))
            lines = lines.splitlines()
            assert max(map(len, lines)) <= width
            assert len(lines) <= max(height, 24)
        assert len(lines) > 2**found.order / 2  # all of it, where there is room


def test_half_blocks_have_two_cells_each():
    with memory_network("10.0.0.1/24", 30, exclude=["10.0.0.128/25"]) as view:
        found = survey(view, "web")
        lines = blocks(found, width=80, height=40, colour=True).splitlines()
        drawn = [line for line in lines if "\u2580" in line]
        assert len(drawn) == 8
        table, rows = palette(DARK), []
        for line in drawn:
            upper, lower, fore, back = [], [], None, None
            for code, sign in re.findall(r"\x1b\[([\d;]*)m|(\u2580)", line):
                if sign:
                    upper.append(fore)
                    lower.append(back)
                elif code.startswith("38;2;"):
                    fore = tuple(map(int, code.split(";")[2:]))
                elif code.startswith("48;2;"):
                    back = tuple(map(int, code.split(";")[2:]))
            assert line.endswith("\x1b[0m")
            rows += [upper, lower]
        expected_rows = kinds(found)[hilbert.map_of(4)].tolist()
        assert rows == [[table[kind] for kind in row] for row in expected_rows]


def test_shades_say_the_share_and_signs_the_rest():
    with memory_network("10.0.0.1/24", 100, exclude=["10.0.0.192/26"], cooldown=99) as view:
        view.manager.reserve("10.0.0.160")
        for held in view.manager.interfaces()[60:]:
            held.release()
        text = blocks(survey(view, "web", cells_order=2), width=80, height=24, colour=False)
        lines = text.splitlines()
        assert lines[:2] == ["web \u00b7 10.0.0.0/24", "60 of 190 in use (31.6 %)"]
        rows = [line for line in lines if len(line) == 8 and not line.isascii()]
        assert rows[0][:2] == "\u2588\u2588" and "\x1b" not in text
        assert "".join(rows).count("~") == 2 * 3 and "".join(rows).count("+") == 2
        assert "one cell is 16 addresses, a /28" in lines
        assert "~ cooling down 40" in text and "+ reserved 1" in text


def test_the_smallest_networks_are_drawn():
    for network, subnet in (("10.0.0.1/30", 4), ("10.0.0.0/31", 2), ("10.0.0.1/32", 1)):
        try:
            view = memory_network(network)
        except OutOfRangeError:
            continue
        with view:
            found = survey(view, "web")
            assert found.count == subnet
            assert png(found)[:4] == b"\x89PNG"
            assert ElementTree.fromstring(svg(found)) is not None
            assert "one cell" in blocks(found, width=80, height=24, colour=True)
