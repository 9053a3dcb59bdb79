"""Plain YAML within bounds: what a file holds is read as data, each key once, and errors name file and line."""

from __future__ import annotations

import os
from typing import Any

import yaml

from ..errors import BadRecordError
from .text_files import decode_text, read_text

MAX_BYTES = 4 << 20
_MAX_DEPTH = 50
_MAX_VALUES = 200_000  # after aliases are expanded: a few lines of anchors can stand for billions of values
_PREFIX = "tag:yaml.org,2002:"
_MERGE = f"{_PREFIX}merge"
_TAGS = {f"{_PREFIX}{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Read a YAML file; see `parse_yaml`.

    Raises:
        FileNotFoundError: no such file.
        BadRecordError: it cannot be used; names file and line.
    """
    return parse_yaml(read_text(path, MAX_BYTES), str(path))


def parse_yaml(text: str | bytes, source: str) -> Any:
    """Return the value of one YAML document: dicts, lists, strings, numbers, booleans and None.

    Dates stay strings. Aliases and merge keys (`<<`) work.

    Args:
        text: the document.
        source: name of the file, for errors.

    Raises:
        BadRecordError: no YAML, a key that occurs twice or is no scalar, a tag beyond those of JSON's types, or a
            document that is too deep, too large or contains itself; names the line.
    """
    content = text if isinstance(text, str) else decode_text(text, source)
    try:
        return _parse(content)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = ", ".join(filter(None, (error.context, error.problem)))
        raise BadRecordError(source, f"is not plain YAML: {reason}", _line(mark)) from error
    except yaml.reader.ReaderError as error:  # control characters
        line = content[: error.position].count("\n") + 1
        raise BadRecordError(source, f"is not plain YAML: {error.reason}", f"line {line}") from error


def _parse(text: str) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _line(mark: Any) -> str | None:
    return None if mark is None else f"line {mark.line + 1}"


class _Loader(yaml.SafeLoader):
    """PyYAML's loader in Python: the one in C ends the process where a document is nested too deeply."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, f"nested more than {_MAX_DEPTH} levels deep", mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def fetch_flow_collection_start(self, token: Any) -> None:
        if self.flow_level > _MAX_DEPTH:  # before the scanner looks ahead, which takes long for many brackets
            raise yaml.scanner.ScannerError(None, None, f"nested more than {_MAX_DEPTH} levels deep", self.get_mark())
        super().fetch_flow_collection_start(token)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:  # !!int "x", 10**5 digits
            problem = f"{str(node.value)[:40]!r} is not a value of the type {node.tag.removeprefix(_PREFIX)}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


# A date would be an object that no setting and no class name takes.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in _TAGS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _check(node: yaml.Node, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """Check a node and what is below it; return how many values it stands for, and on how many levels.

    Args:
        node: as composed, so that aliases are the same object.
        known: results of the nodes that are done; None for those around this one.
    """
    if id(node) in known:
        result = known[id(node)]
        if result is None:
            raise _error(node, "an anchor that contains itself")
        return result
    known[id(node)] = None
    if node.tag not in _TAGS:
        tag = node.tag.replace(_PREFIX, "!!")
        raise _error(node, f"the tag {tag} is not accepted, and tags that run Python never are; write the value itself")
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        children = [child for pair in node.value for child in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    below = [_check(child, known) for child in children]
    size, depth = 1 + sum(size for size, _ in below), 1 + max((depth for _, depth in below), default=0)
    if size > _MAX_VALUES or depth > _MAX_DEPTH:
        limit = f"{_MAX_VALUES:,} values" if size > _MAX_VALUES else f"{_MAX_DEPTH} levels"
        raise _error(node, f"more than {limit}, after its aliases are expanded")
    known[id(node)] = size, depth
    return size, depth


def _check_keys(node: yaml.MappingNode) -> None:
    seen: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _error(key, "a key that is a list or a mapping")
        line = key.start_mark.line + 1
        if key.tag != _MERGE and key.value in seen:
            raise _error(key, f"the key '{key.value}' a second time, after line {seen[key.value]}; remove one of them")
        seen[key.value] = line


def _error(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(None, None, problem, node.start_mark)
