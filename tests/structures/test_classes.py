"""Tests of the table of classes."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, replace

import pytest

from mask2former.structures.classes import ClassTable
from mask2former.structures.colors import color_of


def test_columns_that_are_not_given_are_filled() -> None:
    table = ClassTable(("cell", "sky"))
    assert table == ClassTable(("cell", "sky"), (True, True), (color_of(0), color_of(1)), (1, 2))
    assert len(table) == 2 and hash(table) == hash(ClassTable(("cell", "sky")))
    given = ClassTable(("cell", "sky"), is_thing=(True, False), dataset_ids=(3, 40))
    assert (given.is_thing, given.dataset_ids, given.colors) == ((True, False), (3, 40), table.colors)
    assert given != table and not len(ClassTable(()))
    for column in ("is_thing", "colors", "dataset_ids"):
        with pytest.raises(ValueError, match=f"2 class names but 1 entries in {column}"):
            ClassTable(("cell", "sky"), **{column: (1,)})


def test_a_table_does_not_change_and_can_be_copied() -> None:
    table = ClassTable(("cell", "sky"), is_thing=(True, False))
    with pytest.raises(FrozenInstanceError):
        table.names = ("a", "b")  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(table)) == copy.deepcopy(table) == table
    assert replace(table, dataset_ids=(7, 8)) == ClassTable(table.names, table.is_thing, (), (7, 8))
    assert repr(table).startswith("ClassTable(names=('cell', 'sky'), is_thing=(True, False)")
