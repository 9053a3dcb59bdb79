"""Defaults in registries give way to every other registration."""

from __future__ import annotations

import pickle

import pytest
from fvcore.common.registry import Registry

from mask2former.utils import registry as module
from mask2former.utils.registry import Waiting, claim, register, shared

REGISTRY = Registry("PARTS")


def part(name: str, module: str = "client") -> type:
    return type(name, (), {"__module__": module})


def test_a_later_registration_replaces_the_default_once() -> None:
    registry = Registry("PARTS")
    ours = register(registry)(part("Head", "ours"))
    assert registry.get("Head") is ours
    theirs = part("Head")
    registry.register(theirs)
    assert registry.get("Head") is theirs and len(list(registry)) == 1
    with pytest.raises(AssertionError, match="already registered"):
        registry.register()(part("Head"))
    assert registry.get("Head") is theirs


def test_an_earlier_registration_stays() -> None:
    registry = Registry("PARTS")
    theirs = part("Head")
    registry.register(theirs)
    ours = register(registry)(part("Head", "ours"))
    assert ours.__module__ == "ours" and registry.get("Head") is theirs
    with pytest.raises(AssertionError, match="already registered"):
        registry.register(part("Head"))


def test_a_second_copy_leaves_the_first_and_a_second_import_replaces_it() -> None:
    registry = Registry("PARTS")
    first = register(registry)(part("Head", "mask2former.head"))
    register(registry)(part("Head", "vendored.mask2former.head"))
    assert registry.get("Head") is first
    again = register(registry)(part("Head", "mask2former.head"))
    assert registry.get("Head") is again


def test_a_copy_can_claim_its_defaults_but_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_OWN", [])
    registry = Registry("PARTS")
    others = [register(registry)(part(name, "other.copy")) for name in ("Head", "Neck")]
    ours = [register(registry)(part(name, "this.copy")) for name in ("Head", "Neck")]
    assert [registry.get("Head"), registry.get("Neck")] == others
    theirs = part("Neck")
    registry.register(theirs)
    module._OWN[:] = [(registry, cls) for cls in ours]
    claim()
    assert [registry.get("Head"), registry.get("Neck")] == [ours[0], theirs]


def test_other_names_are_registered_as_before() -> None:
    registry = Registry("PARTS")
    register(registry)(part("Head", "ours"))

    @registry.register()
    class Other:
        pass

    assert registry.get("Other") is Other and "Head" in registry


def test_waiting_registrations_are_made_when_they_are_needed() -> None:
    registry, waiting = Registry("PARTS"), Waiting()
    register(registry, waiting)(part("Head", "ours"))
    waiting.repeat()
    assert "Head" not in registry
    waiting.activate()
    assert "Head" in registry
    register(registry, waiting)(part("Neck", "ours"))
    assert "Neck" in registry
    theirs = part("Head")
    registry.register(theirs)
    waiting.activate()
    waiting.repeat()
    assert registry.get("Head") is theirs


def test_a_registry_with_defaults_can_be_pickled() -> None:
    register(REGISTRY)(Waiting)
    assert "Waiting" in pickle.loads(pickle.dumps(REGISTRY))


def test_copies_share_objects() -> None:
    first = shared("tests of shared objects", list)
    assert shared("tests of shared objects", dict) is first
