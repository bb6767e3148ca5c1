"""YAML files and `key=value` overrides into frozen dataclasses; strict, and back again."""

from __future__ import annotations

import dataclasses
import difflib
import enum
import math
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from w2vbert.errors import UserError
from w2vbert.files import atomic_file

if TYPE_CHECKING:
    from pydantic import ValidationError

T = TypeVar("T")

HOW_ONLY = MappingProxyType({"how_only": True})
"""Metadata of fields that say how a command runs, and nothing of what it makes: another value is the same step."""


def load_config(cls: type[T], path: Path | None = None, overrides: Sequence[str] = ()) -> T:
    """Builds the dataclass `cls` from its defaults, then a YAML file, then overrides (`optim.learning_rate=1e-4`).

    Values are coerced to the types of the fields (`1e-4`, a string for YAML, becomes a float).

    Raises:
        UserError: unreadable file, unknown key at any depth, wrong type, or a ValueError of a `__post_init__`; in one
            line with the file, the key and what is allowed.
    """
    from pydantic import TypeAdapter, ValidationError

    source = _describe_source(cls, path, overrides)
    tree = _read_yaml(path) if path is not None else {}
    for override in overrides:
        _apply_override(tree, override)
    _check_keys(cls, tree, (), source)
    try:
        config = TypeAdapter(cls).validate_python(tree)
    except ValidationError as error:
        raise UserError(f"{source}: {_first_problem(error, tree)}") from error
    place = _find_not_finite(config)
    if place is not None:
        raise UserError(f"{source}: {place}: a finite number is needed")
    return config


def top_level_keys(path: Path | None, overrides: Sequence[str]) -> list[str]:
    """Keys of a YAML file and of overrides, outermost ones only, whatever they belong to.

    Raises:
        UserError: the file or an override cannot be read.
    """
    tree = _read_yaml(path) if path is not None else {}
    for override in overrides:
        _apply_override(tree, override)
    return [str(key) for key in tree]


def to_dict(config: object) -> dict[str, Any]:
    """A config dataclass as nested dicts, lists and scalars, fit for YAML and JSON."""
    assert dataclasses.is_dataclass(config) and not isinstance(config, type)
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def save_config(config: object, path: Path) -> None:
    """Writes a config as YAML that `load_config` reads back as an equal dataclass."""
    import yaml

    with atomic_file(path) as partial:
        partial.write_text(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")


def _find_not_finite(value: object, name: str = "") -> str | None:
    """The key of a nan or infinity, which pass many a comparison in a `__post_init__` that asks for what is wrong."""
    if isinstance(value, float):
        return None if math.isfinite(value) else name
    items: list[tuple[object, object]] = []
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    elif isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, (list, tuple)):
        items = list(enumerate(value))
    found = (_find_not_finite(item, f"{name}.{key}" if name else str(key)) for key, item in items)
    return next((place for place in found if place is not None), None)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value


def _describe_source(cls: type, path: Path | None, overrides: Sequence[str]) -> str:
    settings = " ".join(f"--set {override}" for override in overrides)
    if path is None:
        return settings or cls.__name__
    return f"{path} with {settings}" if settings else str(path)


@cache
def _loader() -> Any:
    """A SafeLoader that refuses keys given twice, and for which on and off are words, as in YAML 1.2.

    Fields of true and false take these words, too; others have them among their own (`train.compile=off`).
    """
    import yaml

    class StrictLoader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            for index, key in enumerate(keys):
                if key in keys[:index]:
                    raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
            return super().construct_mapping(node, deep)

    StrictLoader.yaml_implicit_resolvers = {
        first: [(tag, words) for tag, words in resolvers if tag != "tag:yaml.org,2002:bool" or first not in "oO"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return StrictLoader


def _read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping, a key given twice is an error."""
    import yaml

    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_loader())
    except FileNotFoundError as error:
        raise UserError(f"no such config file: {path}") from error
    except (IsADirectoryError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a YAML file") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a config must be a mapping of keys to values, not a {type(tree).__name__}")
    return tree


def _apply_override(tree: dict[str, Any], override: str) -> None:
    """Puts the value of `a.b=value` into the nested `tree`; the value is read as YAML."""
    import yaml

    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"--set {override}: write key=value, for example --set train.max_steps=500")
    try:
        value = yaml.load(text, Loader=_loader())
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none
        raise UserError(f"--set {override}: the value is not valid YAML") from error
    node = tree
    for key in keys[:-1]:
        child = node.get(key)
        if not isinstance(child, dict):
            child = node[key] = {}
        node = child
    node[keys[-1]] = value


def _check_keys(annotation: Any, value: Any, location: tuple[str, ...], source: str) -> None:
    """Refuses keys that no dataclass has, wherever a dataclass may stand, and true or false where a number belongs."""
    if annotation in (int, float) and isinstance(value, bool):
        raise UserError(f"{source}: {'.'.join(location)}: a number is needed, not {str(value).lower()}")
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        if isinstance(value, Mapping):
            _check_dataclass_keys(annotation, value, location, source)
        return
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        classes = [argument for argument in arguments if dataclasses.is_dataclass(argument)]
        if len(classes) == 1:
            _check_keys(classes[0], value, location, source)
    elif origin in (list, tuple) and isinstance(value, (list, tuple)):
        repeated = origin is list or arguments[-1:] == (Ellipsis,)
        kinds = [arguments[0]] * len(value) if repeated else list(arguments)
        for index, (kind, item) in enumerate(zip(kinds, value, strict=False)):
            _check_keys(kind, item, (*location, str(index)), source)
    elif origin is dict and isinstance(value, Mapping):
        for key, item in value.items():
            _check_keys(arguments[1], item, (*location, str(key)), source)


def _check_dataclass_keys(cls: type, value: Mapping[Any, Any], location: tuple[str, ...], source: str) -> None:
    hints = typing.get_type_hints(cls)
    assert dataclasses.is_dataclass(cls)
    allowed = [field.name for field in dataclasses.fields(cls) if field.init]
    for key, item in value.items():
        if key not in allowed:
            inside = f" in {'.'.join(location)}" if location else ""
            close = difflib.get_close_matches(str(key), allowed, n=1)
            hint = f", did you mean {close[0]}?" if close else ""
            raise UserError(f"{source}: unknown key {key}{inside}{hint} (allowed: {', '.join(allowed)})")
        _check_keys(hints[key], item, (*location, key), source)


def _first_problem(error: ValidationError, tree: Any) -> str:
    """One line for the first of pydantic's errors: the key, what is wrong, and the value."""
    problem = error.errors(include_url=False)[0]
    cause = problem.get("ctx", {}).get("error")
    keys = []
    for key in problem["loc"]:  # pydantic adds the names of union members, which are no keys
        if isinstance(tree, Mapping) and (key in tree or problem["type"] == "missing"):
            tree = tree.get(key)
        elif isinstance(tree, (list, tuple)) and isinstance(key, int) and key < len(tree):
            tree = tree[key]
        else:
            continue
        keys.append(str(key))
    prefix = f"{'.'.join(keys)}: " if keys else ""
    if isinstance(cause, ValueError):
        return prefix + str(cause)
    if problem["type"] == "missing":
        return f"{prefix}this key is needed"
    message = problem["msg"]
    return f"{prefix}{message[:1].lower()}{message[1:]} (not {problem['input']!r})"
