import copy
import pickle

import pytest

from mask2former.utils.lazy_dict import Later, LazyDict


@pytest.fixture
def calls() -> list[int]:
    return []


@pytest.fixture
def lazy(calls: list[int]) -> LazyDict:
    def compute() -> int:
        calls.append(1)
        return 7

    return LazyDict(a=1, b=Later(compute))


def test_keys_and_length_compute_nothing(lazy: LazyDict, calls: list[int]) -> None:
    assert list(lazy) == ["a", "b"] and sorted(lazy) == ["a", "b"] and len(lazy) == 2 and "b" in lazy
    assert list(lazy.keys()) == ["a", "b"]
    assert lazy.unread("b") is not None and lazy.unread("a") is None and lazy.unread("c") is None
    assert calls == []


def test_every_way_to_read_gives_the_value_once(lazy: LazyDict, calls: list[int]) -> None:
    ways = [
        lambda x: x["b"],
        lambda x: x.get("b"),
        lambda x: dict(x)["b"],
        lambda x: {**x}["b"],
        lambda x: dict(x.items())["b"],
        lambda x: [*x.values()][1],
        lambda x: {k: v for k, v in x.items() if k != "a"}["b"],
        lambda x: x.copy()["b"],
        lambda x: copy.copy(x)["b"],
        lambda x: copy.deepcopy(x)["b"],
        lambda x: pickle.loads(pickle.dumps(x))["b"],
        lambda x: (x | {})["b"],
        lambda x: ({} | x)["b"],
        lambda x: x.setdefault("b", 0),
        lambda x: {"a": 0, **x}["b"],
        lambda x: {}.__class__(a=0, **x)["b"] if "a" not in x else x["b"],
    ]
    for way in ways:
        assert way(lazy) == 7
    assert calls == [1]
    assert lazy == {"a": 1, "b": 7} and repr(lazy) == "{'a': 1, 'b': 7}"
    assert lazy.unread("b") is None


@pytest.mark.parametrize("take", [lambda x: x.pop("b"), lambda x: x.popitem()[1]])
def test_removing_returns_the_value(lazy: LazyDict, take) -> None:
    assert take(lazy) == 7 and "b" not in lazy


def test_update_of_a_plain_dictionary(lazy: LazyDict) -> None:
    plain: dict[str, int] = {}
    plain.update(lazy)
    assert plain == {"a": 1, "b": 7}


def test_setting_replaces_what_was_not_read(lazy: LazyDict, calls: list[int]) -> None:
    lazy["b"] = 3
    assert lazy["b"] == 3 and calls == []
    assert lazy.pop("c", 5) == 5 and lazy.get("c", 6) == 6 and lazy.setdefault("c", 4) == 4
    with pytest.raises(KeyError):
        lazy["d"]
    with pytest.raises(KeyError):
        lazy.pop("d")
