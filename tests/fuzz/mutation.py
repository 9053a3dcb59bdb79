"""Seeded damage to JSON trees, to the text that holds them, and to bytes."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

Container = dict[str, Any] | list[Any]
Place = tuple[Container, Any]

NUMBERS = (0, 1, -1, 2, 3, 5, 255, 256, 65536, 2**31, -(2**31), 2**63, 10**36, 0.5, -0.0, 1e-30, 1e30, 1e308)
NOT_FINITE = (float("nan"), float("inf"), float("-inf"))
TEXTS = (
    "",
    "x",
    "0",
    "12 px",
    " ",
    "a\0b",
    "../../x",
    "/",
    ".",
    "C:\\x",
    "ß中文",
    "\ud800",
    "\ufeff",
    "x" * 5000,
    "%s{0}",
)
OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], [None], {"a": 1}, [0] * 1000, [[1, 2], [3, 4]])


def nasty(random: Random) -> Any:
    """Return a value of any type that a program may not expect."""
    values = random.choice((NUMBERS, NUMBERS, NOT_FINITE, TEXTS, OTHERS))
    return copy.deepcopy(random.choice(values))


def places(tree: Any, schema: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Place]]:
    """Yield (schema path, container and key) of every node of a tree; entries of a list share a schema path."""
    entries: Iterator[tuple[Any, Any]]
    if isinstance(tree, dict):
        entries = iter(list(tree.items()))
    elif isinstance(tree, list):
        entries = iter(list(enumerate(tree)))
    else:
        return
    for key, value in entries:
        path = (*schema, "*" if isinstance(tree, list) else str(key))
        yield path, (tree, key)
        yield from places(value, path)


def pick(random: Random, tree: Any) -> Place | None:
    """Return a place of a tree; all kinds of places are equally likely, however many there are of one kind."""
    by_schema: dict[tuple[str, ...], list[Place]] = {}
    for schema, place in places(tree):
        by_schema.setdefault(schema, []).append(place)
    return random.choice(by_schema[random.choice(sorted(by_schema))]) if by_schema else None


def mutate(random: Random, tree: Any, more: tuple[Callable[[Random, Any], None], ...] = ()) -> Any:
    """Return a copy of a JSON tree with one to three changes; `more` are changes of the format's own, in place."""
    tree = copy.deepcopy(tree)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        if more and random.random() < 0.5:
            random.choice(more)(random, tree)
            continue
        place = pick(random, tree)
        if place is None:
            return nasty(random)
        change(random, *place)
    return tree if random.random() > 0.01 else nasty(random)


def change(random: Random, container: Container, key: Any) -> None:
    """Change one node of a tree in place."""
    value = container[key]
    action = random.randrange(9)
    if action == 0:
        del container[key]
    elif action == 1 and isinstance(container, list):
        container.insert(random.randrange(len(container) + 1), copy.deepcopy(value))
    elif action == 1:
        container[random.choice(TEXTS)] = container.pop(key)
    elif action == 2:
        other = random.choice(list(container) if isinstance(container, dict) else range(len(container)))
        container[key], container[other] = container[other], value
    elif action == 3:
        container[key] = random.choice(([value], {"x": value}, str(value)[:1000], [value, value]))
    elif action == 4 and type(value) in (int, float):
        container[key] = number_near(random, value)
    elif action == 4 and isinstance(value, str):
        container[key] = damage_text(random, value)
    elif action == 4 and isinstance(value, list):
        random.shuffle(value)
        del value[random.randrange(len(value) + 1) :]
    else:
        container[key] = nasty(random)


def number_near(random: Random, value: float) -> Any:
    """Return a number that differs a little, or by a factor."""
    return random.choice((value + 1, value - 1, -value, value * 1000, value / 7, float(value), value + 0.5, str(value)))


def damage_text(random: Random, text: str) -> str:
    """Return a text with a few characters inserted, replaced or removed."""
    position = random.randrange(len(text) + 1)
    inserted = random.choice((*TEXTS[:-2], "/", "\n", "é", ",", "-1", "9" * 30))
    return text[:position] + inserted + text[position + random.choice((0, 0, 1, 5)) :]


def write_json(random: Random, tree: Any) -> bytes:
    """Return the text of a tree, one time in ten damaged as a file would be."""
    text = json.dumps(tree)
    if random.random() > 0.1:
        return text.encode()
    choices: tuple[Callable[[], bytes], ...] = (
        lambda: text[: random.randrange(len(text) + 1)].encode(),
        lambda: b"\xef\xbb\xbf" + text.encode(),
        lambda: text.encode("utf-16"),
        lambda: damage_text(random, text).encode("utf-8", "surrogatepass"),
        lambda: mutate_bytes(random, text.encode()),
        lambda: ("[" * random.choice((500, 100_000))).encode(),
        lambda: text.replace("[", "[" * 2000, 1).encode(),
        lambda: b"",
        lambda: b"\0" * 100,
        lambda: text.replace('"id"', '"id": 1, "id"', 1).encode(),
    )
    return random.choice(choices)()


def mutate_bytes(random: Random, data: bytes) -> bytes:
    """Return bytes with one to four changes: bits, blocks, lengths."""
    content = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4))):
        if not content:
            return bytes(content)
        # Headers decide more than the rest.
        start = random.randrange(len(content)) if random.random() < 0.6 else random.randrange(min(len(content), 128))
        size = random.choice((1, 1, 2, 4, 16, 64))
        action = random.randrange(7)
        if action == 0:
            content[start] ^= 1 << random.randrange(8)
        elif action == 1:
            content[start : start + size] = random.randbytes(size)
        elif action == 2:
            content[start : start + size] = random.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * size
        elif action == 3:
            del content[start : start + size]
        elif action == 4:
            content[start:start] = content[start : start + size]
        elif action == 5:
            del content[start:]
        else:
            source = random.randrange(len(content))
            content[start : start + size] = content[source : source + size]
    return bytes(content)
