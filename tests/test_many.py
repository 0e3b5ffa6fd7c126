"""Many interfaces released in one go: as by their own release, in parts that others can pass."""

import pytest

from netalloc import InvalidValueError, NetworkManager, NotAllocatedError


@pytest.fixture(params=["memory", "file"])
def manager(request, tmp_path):
    store = None if request.param == "memory" else tmp_path / "host.db"
    with NetworkManager("br0", network="10.0.0.1/16", backend="null", store=store) as made:
        yield made


def test_all_of_them_are_free(manager):
    before = manager.allocate("stays", ports=[80])
    many = manager.allocate_many(700, ports=[80], owner="job")
    assert manager.release_many(many) == 700
    assert manager.interfaces() == [before]
    assert manager.check() == []
    for one in many:
        with pytest.raises(NotAllocatedError):
            one.release()


def test_what_another_has_ended_is_counted_and_no_error(manager):
    one, two, three = manager.allocate_many(3)
    (found,) = [same for same in manager.find() if same == two]
    found.release()
    assert manager.release_many([one, two, three]) == 2
    assert manager.stale_releases == 1
    assert manager.find() == []


def test_one_that_was_released_here_is_refused_before_anything_changes(manager):
    one, two = manager.allocate_many(2)
    one.release()
    with pytest.raises(NotAllocatedError):
        manager.release_many([two, one])
    assert manager.find() == [two]


def test_the_same_one_twice_is_released_once(manager):
    one = manager.allocate("x")
    assert manager.release_many([one, one]) == 1
    assert manager.find() == [] and manager.check() == []


@pytest.mark.parametrize("wrong", [None, 1, "web", [None], [1], ["web"]])
def test_what_is_no_interface_is_refused(manager, wrong):
    with pytest.raises(InvalidValueError):
        manager.release_many(wrong)


def test_an_interface_of_another_network_is_refused(manager, tmp_path):
    with NetworkManager("br1", network="10.1.0.1/24", backend="null") as other:
        with pytest.raises(InvalidValueError, match="another network"):
            manager.release_many([other.allocate("x")])
        assert len(other.find()) == 1


def test_an_interface_of_another_manager_of_the_same_network_is_ours(tmp_path):
    store = tmp_path / "host.db"
    with NetworkManager("br0", network="10.0.0.1/16", backend="null", store=store) as one:
        with NetworkManager.open("br0", store) as two:
            assert two.release_many(one.allocate_many(3)) == 3
        assert one.find() == []
