"""YAML files that hold a mapping of known keys, and `key=value` overrides of them."""

import difflib
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from llm2comp.errors import UserError, one_line

UNKNOWN_KEY = "unknown_key"
"""Type of the validation error for a key that a model does not have."""
NO_NUMBER = "no_number"
"""Type of the validation error for `true` where a number is wanted."""
NO_MAPPING = "no_mapping"
"""Type of the validation error for a value where a model's keys are wanted."""
_WORDS = {
    "missing": "is missing",
    "dict_type": "must be a mapping, such as {{key: value}}",
    "list_type": "must be a list, such as [first, second]",
    "model_attributes_type": "must be a mapping of settings, such as {{stage: supervised, ...}}",
    "union_tag_not_found": "lacks the key {discriminator}, which says what the settings are for",
    "union_tag_invalid": "{discriminator} is {tag}, and it must be one of {expected_tags}",
    "string_type": "must be a text",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
}
"""What a validation error of pydantic is called, by its type."""
_SCALARS = ("string_type", "int_type", "float_type", "bool_type", "literal_error")
"""Types of errors for a value that is no text, number or choice."""


class Strict(BaseModel):
    """A mapping that may hold known keys only."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_key(cls, values: Any) -> Any:
        """Refuse the first unknown key with a hint, before pydantic looks at the values."""
        known = list(cls.model_fields)
        if not isinstance(values, dict | cls):
            needed = [key for key, field in cls.model_fields.items() if field.is_required()]
            hint = f"give {', '.join(needed)} at least" if needed else "{} takes the defaults"
            context = {"keys": ", ".join(known), "hint": hint}
            message = "must be a mapping of settings ({keys}); {hint}"
            raise PydanticCustomError(NO_MAPPING, message, context)
        for key in map(str, values) if isinstance(values, dict) else ():
            if key not in known:
                nearest = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {nearest[0]!r}?" if nearest else f"use {', '.join(known)}"
                context = {"key": key, "hint": hint}
                raise PydanticCustomError(UNKNOWN_KEY, "unknown key; {hint}", context)
        return values

    @model_validator(mode="before")
    @classmethod
    def _refuse_truth_for_a_number(cls, values: Any) -> Any:
        """Refuse `true` where a number is wanted. Pydantic would read it as 1."""
        for key, value in values.items() if isinstance(values, dict) else ():
            wanted = _number_of(cls.model_fields[key].annotation) if key in cls.model_fields else ""
            given = value if isinstance(value, list) else [value]
            if wanted and any(isinstance(one, bool) for one in given):
                context = {"key": key, "wanted": wanted, "given": one_line(repr(value), 60)}
                raise PydanticCustomError(NO_NUMBER, "must be {wanted} (got {given})", context)
        return values


def _number_of(annotation: Any) -> str:
    """Return what to call the number that an annotation wants; "" if it takes something else."""
    kinds = _kinds(annotation)
    if bool in kinds:
        return ""
    return "a number" if float in kinds else "a whole number" if int in kinds else ""


def _kinds(annotation: Any) -> list[Any]:
    """Return the types that an annotation is made of."""
    parts = get_args(annotation)
    return [kind for part in parts for kind in _kinds(part)] if parts else [annotation]


class _Loader(yaml.SafeLoader):
    """The safe loader, which also refuses a mapping that has a key twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Return a mapping; PyYAML would keep the last of two values without a word."""
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if name in seen and key.tag != _MERGE:
                raise _RepeatedKey(
                    None, None, f"the key {key.value!r} is there twice", key.start_mark
                )
            seen.add(name)
        return node


class _RepeatedKey(yaml.MarkedYAMLError):
    pass


_MERGE = "tag:yaml.org,2002:merge"
"""Tag of the key `<<`, which takes over the keys of another mapping."""


def _load(text: str) -> Any:
    """Return what YAML says, without its aliases (see `_unshared`).

    Raises:
        yaml.YAMLError: if it is not YAML, or a mapping has a key twice.
    """
    try:
        return _unshared(yaml.load(text, _Loader))
    # An impossible date or half a character; a thousand brackets, or a list within itself.
    except (ValueError, RecursionError) as error:
        raise yaml.YAMLError(str(error)) from error


def read_yaml(path: Path, kind: str) -> dict[str, Any]:
    """Read a YAML file that holds a mapping of keys.

    Args:
        path: the file.
        kind: what the file should be ("recipe"), for the error message.

    Raises:
        UserError: if the file is missing, is not YAML in UTF-8, has a key twice, or holds something
            else.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if "\0" in text:  # as UTF-16 without its mark reads
            raise UserError(f"{kind} {path} is not UTF-8; save it as UTF-8")
        content = _load(text)
    except OSError as error:
        raise UserError(f"{kind} {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{kind} {path} is not UTF-8; save it as UTF-8") from error
    except _RepeatedKey as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{kind} {path}:{line}: {error.problem}; remove one") from error
    except yaml.YAMLError as error:
        raise UserError(f"{kind} {path} is not YAML: {one_line(error, limit=None)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{kind} {path} must be a mapping of keys, see those of recipes/")
    return content


def apply_overrides(content: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return a copy of a mapping in which overrides have replaced values.

    An override is `key=value`. Dots join the keys of nested mappings, a number is a place in a
    list, and the value is YAML: `memory.tokens=4`, `pretext.data.0.source=texts.txt`. An item of
    the list `stages` may be named by its `stage`, as `pretext` is here.

    Args:
        content: a mapping as read from YAML. It stays as it is.
        overrides: applied in their order.

    Raises:
        UserError: if an override cannot be applied.
    """
    content = _unshared(content)
    for override in overrides:
        _apply(content, override)
    return content


def _unshared(node: Any) -> Any:
    """Return a copy in which what YAML shares by an alias (`lora: *lora`) is there several times.

    Otherwise an override of one stage would change all stages.

    Raises:
        UnicodeEncodeError: for half a character, which no file could hold.
    """
    if isinstance(node, dict):
        return {_unshared(key): _unshared(value) for key, value in node.items()}
    if isinstance(node, str):
        node.encode()
    return [_unshared(item) for item in node] if isinstance(node, list) else node


def _apply(content: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    if not separator or not path.isprintable() or not all(map(str.strip, path.split("."))):
        raise UserError(f"override {override!r} is not of the form key=value")
    try:
        value = _load(text)
    except _RepeatedKey as error:
        raise UserError(f"override {override!r}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise UserError(f"override {override!r}: the value is not YAML") from error
    *parents, last = _with_stage_number(content, path.split("."))
    node: Any = content
    for parent in parents:
        node = _child(node, parent, override)
    node[_list_index(node, last, override) if isinstance(node, list) else last] = value


def _with_stage_number(content: dict[str, Any], path: list[str]) -> list[str]:
    """Return a path that begins with the name of a stage as `stages`, number, and the rest."""
    first, *rest = path
    stages = content.get("stages")
    if rest and isinstance(stages, list):
        for number, stage in enumerate(stages):
            if isinstance(stage, dict) and stage.get("stage") == first:
                return ["stages", str(number), *rest]
    return path


def _child(node: Any, key: str, override: str) -> Any:
    if isinstance(node, list):
        child = node[_list_index(node, key, override)]
    else:
        child = node.setdefault(key, {})
    if not isinstance(child, dict | list):
        raise UserError(f"override {override!r}: {key!r} holds a value, not further keys")
    return child


def _list_index(items: list[Any], key: str, override: str) -> int:
    if key not in map(str, range(len(items))):
        raise UserError(f"override {override!r}: {key!r} is not one of 0 to {len(items) - 1}")
    return int(key)


def explain_validation_error(error: ValidationError) -> str:
    """Return the first thing that is wrong in one line, beginning with the dotted key."""
    first = error.errors()[0]
    location, given = list(map(str, first["loc"])), first["input"]
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if first["type"] in _WORDS:
        message = _WORDS[first["type"]].format(**first.get("ctx", {}))
    if first["type"] in (UNKNOWN_KEY, NO_NUMBER):
        location.append(first["ctx"]["key"])
    elif isinstance(given, dict) and first["type"] in ("list_type", *_SCALARS):
        message += " (got a mapping)"
    elif not isinstance(given, dict):  # settings that do not go together are not repeated
        message += f" (got {one_line(repr(given), limit=60)})"
    return f"{'.'.join(location)}: {message}" if location else message
