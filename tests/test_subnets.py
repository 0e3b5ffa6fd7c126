"""Subnets: two subnets as one row of ordinals, beside a model of dicts and loops."""

import random
import time
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

import pytest

from netalloc import InvalidValueError, OutOfRangeError, Subnet
from netalloc.ipam.subnets import Subnets


class Model:
    """The same by what each subnet says of each address, one after the other."""

    def __init__(self, subnets):
        self.rows = []
        for i in range(min(subnet.size for subnet in subnets)):
            row = [subnet.address(i) for subnet in sorted(subnets, key=lambda one: one.version)]
            given = all(any(ip in subnet for subnet in subnets) for ip in row)
            self.rows.append((row, given))

    def ordinals(self):
        return {ip: i for i, (row, given) in enumerate(self.rows) if given for ip in row}


def random_subnet(chosen, version):
    bits, total = chosen.randrange(2, 7), 32 if version == 4 else 128
    base = 0x0A000000 if version == 4 else 0xFD00 << 112
    kind = IPv4Address if version == 4 else IPv6Address
    gateway = base + chosen.choice([0, 1, chosen.randrange(2**bits)])
    if version == 4 and gateway == base + 2**bits - 1:
        gateway -= 1
    exclude = []
    for _ in range(chosen.choice([0, 0, 1, 4])):
        low = chosen.randrange(bits)
        exclude.append(f"{kind(base + (chosen.randrange(2**bits) >> low << low))}/{total - low}")
    return Subnet(f"{kind(gateway)}/{total - bits}", exclude=exclude)


def random_subnets(chosen):
    versions = chosen.choice([(4,), (6,), (4, 6), (4, 6), (6, 4)])
    return [random_subnet(chosen, version) for version in versions]


def test_random_pairs_agree_with_the_model():
    chosen, made, refused = random.Random(7), 0, 0
    while made < 600:
        try:
            subnets = random_subnets(chosen)
        except OutOfRangeError:
            continue
        model = Model(subnets)
        ordinals = model.ordinals()
        try:
            ours = Subnets(subnets)
        except OutOfRangeError:
            assert not ordinals
            refused += 1
            continue
        made += 1
        case = str(ours)
        assert ours.size == len(model.rows), case
        assert [list(ours.addresses(i)) for i in range(ours.size)] == [r for r, _ in model.rows]
        assert [ours.gives(i) for i in range(-1, ours.size + 1)] == [
            False,
            *[given for _, given in model.rows],
            False,
        ], case
        assert ours.capacity == sum(given for _, given in model.rows)
        never = {i for start, stop in ours.excluded() for i in range(start, stop)}
        assert never == {i for i, (_, given) in enumerate(model.rows) if not given}, case
        for subnet in subnets:
            for ip in subnet.network:
                assert (ip in ours) == (ip in ordinals), f"{case}: {ip}"
                if ip in ordinals:
                    assert ours.ordinal(ip) == ours.ordinal(str(ip)) == ordinals[ip]
                    assert ip in ours.addresses(ordinals[ip])
                    assert ours.address(ordinals[ip]) == ours.addresses(ordinals[ip])[0]
                else:
                    with pytest.raises(OutOfRangeError, match=str(ip)):
                        ours.ordinal(ip)
        bare = Subnets([Subnet(str(subnet)) for subnet in subnets])
        assert bare.without(ours.exclude) == ours, case
        assert hash(bare.without(ours.exclude)) == hash(ours)
        assert Subnets(reversed(subnets)) == ours
    assert refused > 5


def pair(**options):
    return Subnets([Subnet("fd00:88::1/64"), Subnet("10.88.0.1/24", **options)])


def test_what_is_asked_of_a_pair():
    both = pair(exclude=["10.88.0.4", "10.88.0.128/25"])
    assert (str(both), both.networks) == (
        "10.88.0.1/24 and fd00:88::1/64",
        "10.88.0.0/24 and fd00:88::/64",
    )
    assert both.gateways == (IPv4Address("10.88.0.1"), IPv6Address("fd00:88::1"))
    assert both.pair.v6 == IPv6Network("fd00:88::/64")
    assert both.of_version(6) == Subnet("fd00:88::1/64")
    assert Subnets([Subnet("fd00::/64")]).pair == (None, IPv6Network("fd00::/64"))
    assert Subnets([Subnet("10.0.0.0/24")]).gateways == ()
    assert (both.size, both.capacity) == (253, 125)


@pytest.mark.parametrize(
    ("ip", "message"),
    [
        ("10.88.0.4", r"10\.88\.0\.4 is excluded from 10\.88\.0\.0/24$"),
        ("fd00:88::4", r"fd00:88::4 is not given, as 10\.88\.0\.4 is excluded from 10\.88\.0\.0"),
        ("10.88.0.9", r"10\.88\.0\.9 is not given, as fd00:88::9 is excluded from fd00:88::/64"),
        (
            "fd00:88::ff",
            r"fd00:88::ff has no counterpart in 10\.88\.0\.0/24, which has fewer addresses: 253",
        ),
        ("fd00:88::1", "is the gateway of fd00:88::/64"),
        ("fd00:88::", "routers' anycast"),
        ("10.89.0.1", r"10\.89\.0\.1 is not of 10\.88\.0\.0/24"),
        ("fd00:89::1", "fd00:89::1 is not of fd00:88::/64"),
        ("hello", "'hello' is not an IP address"),
        (5, "5 is not an IP address"),
    ],
)
def test_why_an_address_has_no_ordinal(ip, message):
    both = pair(exclude="10.88.0.4").without(["fd00:88::9"])
    with pytest.raises(InvalidValueError, match=message):
        both.ordinal(ip)
    assert ip not in both


def test_a_gateway_in_the_middle_bars_its_counterpart():
    both = Subnets([Subnet("10.0.0.7/24"), Subnet("fd00::1/64")])
    with pytest.raises(
        OutOfRangeError, match=r"fd00::8 is not given, as 10\.0\.0\.7 is the gateway"
    ):
        both.ordinal("fd00::8")
    assert both.ordinal("fd00::9") == both.ordinal("10.0.0.8")


def test_exclusions_go_each_to_its_own_subnet():
    both = pair().without(
        ["10.88.0.8/30", "FD00:88::20", ip_network("fd00:88::30/124"), ip_address("10.88.0.5")]
    )
    assert both.exclude == ("10.88.0.5", "10.88.0.8/30", "fd00:88::20", "fd00:88::30/124")
    assert both.each[0] == Subnet("10.88.0.1/24", exclude=["10.88.0.5", "10.88.0.8/30"])
    assert both.without([]) == both
    for wrong, message in (
        ("fd00:89::/64", "fd00:89::/64 is not of fd00:88::/64"),
        ("10.89.0.1", r"10\.89\.0\.1 is not of 10\.88\.0\.0/24"),
        ("10.88.0.0/24", "no address to give"),
        ("fd00:88::/64", "no address to give"),
        ("hello", "exclude: 'hello'"),
        (None, "exclude: None"),
        ("fd00:88::1%eth0", "exclude: "),
    ):
        with pytest.raises(InvalidValueError, match=message):
            both.without([wrong])


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        ([], "not none"),
        (["10.0.0.1/8", "11.0.0.1/8"], r"not 10\.0\.0\.1/8 and 11\.0\.0\.1/8"),
        (["fd00::1/64", "fd01::1/64"], "not fd00::1/64 and fd01::1/64"),
        (["10.0.0.1/8", "fd00::1/64", "fd01::1/64"], r"not 10\.0\.0\.1/8 and fd00::1/64 and fd01"),
    ],
)
def test_no_row_of_ordinals(networks, message):
    with pytest.raises(InvalidValueError, match=message):
        Subnets(map(Subnet, networks))


def test_where_nothing_goes_together_nothing_is_made():
    low = Subnet("10.0.0.0/29", exclude=["10.0.0.1", "10.0.0.2", "10.0.0.3"])
    high = Subnet("fd00::/124", exclude=["fd00::4", "fd00::5", "fd00::6"])
    with pytest.raises(OutOfRangeError, match=r"10\.0\.0\.0/29 and fd00::/124 have no addresses"):
        Subnets([low, high])


def test_an_ordinal_costs_the_same_whatever_is_excluded():
    def fastest(both):
        best, ips = 1.0, [both.addresses(i)[1] for i in range(1, 60001, 600)]
        for _ in range(20):
            start = time.perf_counter()
            for ip in ips:
                both.ordinal(ip)
            best = min(best, time.perf_counter() - start)
        return best

    few = Subnets([Subnet("10.0.0.1/16", exclude=["10.0.0.2"]), Subnet("fd00::1/64")])
    # Every second address: 30,000 runs.
    odd = [str(few.address(i)) for i in range(0, 60000, 2)]
    many = Subnets([Subnet("10.0.0.1/16", exclude=odd), Subnet("fd00::1/64")])
    assert len(many.excluded()) == 30000
    assert fastest(many) < 3 * fastest(few)
