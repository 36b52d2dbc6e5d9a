"""The bundle's configs: where they are, and which keys may be overridden.

MONAI accepts an override of a key that does not exist, so a misspelt one silently has no effect. Here it is an error
that suggests the nearest key.
"""

from __future__ import annotations

import ast
import difflib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drive_seg.errors import DriveSegError

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

__all__ = [
    "SPECIAL",
    "bundle_root",
    "check_overrides",
    "config_as_used",
    "config_files",
    "config_keys",
    "literal",
    "overlays",
    "parse_overrides",
    "path_value",
    "read_configs",
    "split_overrides",
    "without_descriptions",
]


_DATED = re.compile(r"\d+(_\d+)+")
"""Numbers to Python, but folders to people: 2026_01_05."""

SPECIAL = ("$", "@", "%")
"""First characters of expressions, references and macros."""


def bundle_root() -> Path:
    """The bundle: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "bundle", package.parent / "bundle"):
        if (candidate / "configs" / "train.json").is_file():
            return candidate
    raise DriveSegError(f"there is no bundle in {package} or beside it, is the installation complete?")


def config_files(root: Path, *names: str) -> list[str]:
    """Paths of configs by name, the base first; a name that ends in ``.json`` is the path of another.

    Raises:
        DriveSegError: if one is missing.
    """
    files = [Path(name) if name.endswith(".json") else root / "configs" / f"{name}.json" for name in names]
    for file in files:
        if not file.is_file():
            raise DriveSegError(f"{file}: there is no such config, expected a bundle in {root}")
    return [str(file) for file in files]


def overlays(root: Path, given: Sequence[str], *base: str) -> list[str]:
    """Configs to lay over others, for ``config_files``.

    Args:
        root: the bundle.
        given: names of configs in the bundle, or paths of JSON files.
        base: names of the configs below.

    Raises:
        DriveSegError: if there is no such config, or a file has a key that neither the configs below have nor the file
            itself refers to, which would have no effect.
    """
    own = sorted({file.stem for file in (root / "configs").glob("*.json")} - _NO_OVERLAYS)
    known = None
    for name in given:
        if name in own:
            continue
        if not (name.endswith(".json") and Path(name).is_file()):
            raise DriveSegError(f"--config {name}: there is no such file, expected JSON, or one of {', '.join(own)}")
        content = _read_json(name)
        known = known or config_keys(_merged(config_files(root, *base)))
        for key in content:
            if key != "_desc_" and f"@{key}" not in f"{content}":
                _check_key(key.removeprefix("+"), known, f"{name}: ")
    return list(given)


_NO_OVERLAYS = {
    *("train", "evaluate", "inference", "metadata", "demo"),
    *("average", "choose_threshold", "ensemble", "fold", "multi_gpu_train", "multi_gpu_evaluate"),
}
"""Files of the bundle that stand alone, or that a command or option lays over others by itself."""


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """Overrides from the command line, ``--key value`` or ``--key=value``, as ``python -m monai.bundle`` takes them.

    Values are read as JSON or Python literals, else as strings; one that begins with ``--`` needs the form with ``=``.
    ``#`` and ``::`` both separate levels.

    >>> parse_overrides(["--max_epochs", "3", "--train#dataset#num_workers=0", "--precision", "float32"])
    {'max_epochs': 3, 'train::dataset::num_workers': 0, 'precision': 'float32'}

    Raises:
        DriveSegError: if an argument is not a ``--key`` or has no value.
    """
    others, overrides = split_overrides(arguments)
    if others:
        raise DriveSegError(f"{others[0]!r}: expected --KEY VALUE, where KEY is a key of the config")
    return overrides


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Paths and overrides, as in ``parse_overrides``, of a command that takes both.

    >>> split_overrides(["a.jpg", "--threshold", "0.4", "b.jpg"])
    (['a.jpg', 'b.jpg'], {'threshold': 0.4})

    Raises:
        DriveSegError: if a ``--key`` has no value.
    """
    paths: list[str] = []
    overrides: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--") or argument == "--":
            paths.append(argument)
            continue
        key, equals, value = argument[2:].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise DriveSegError(f"--{key}: expected a value after it, or ./--{key} for a file of that name")
            value = rest.pop(0)
        overrides[key.replace("#", "::")] = _parse_value(value)
    return paths, overrides


def path_value(path: str | os.PathLike) -> str:
    """A path as a config value, changed if it begins with ``$``, ``@`` or ``%``, which mean something there.

    >>> path_value("runs/a"), path_value("$runs")
    ('runs/a', './$runs')
    """
    text = os.fspath(path)
    return f"./{text}" if text.startswith(SPECIAL) else text


def literal(value: Any) -> Any:
    """The same value, written so that MONAI, which turns ``#`` in any string into ``::``, leaves it as it is.

    >>> literal({"output_dir": "runs/a#2", "t": "$2 * @n#m"})
    {'output_dir': "$'runs/a\\\\x232'", 't': '$2 * @n#m'}
    """
    if isinstance(value, Mapping):
        return {key: literal(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [literal(item) for item in value]
    if isinstance(value, str) and "#" in value and not value.startswith(SPECIAL):
        return "$" + repr(value).replace("#", "\\x23").replace("@", "\\x40")
    return value


def config_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """All values of a config, overlays merged, at every level, by full key such as ``train::dataset::seed``."""
    return dict(_keys(config))


def read_configs(files: Sequence[str], overrides: Mapping[str, Any]) -> ConfigParser:
    """A parser of the configs, the base first, with the overrides applied, from which any part can be requested.

    Raises:
        DriveSegError: as ``check_overrides``.
    """
    from monai.bundle import ConfigParser  # the command line answers --help without it

    check_overrides(files, overrides)
    parser = ConfigParser()
    parser.read_config(list(files))
    parser.update(literal(overrides))
    return parser


def without_descriptions(config: Any) -> Any:
    """A config, or a part of one, without what it says of itself: neither ``_desc_`` nor its wording matters to a run.

    >>> without_descriptions({"keys": [{"_desc_": "why", "k": 1}]})
    {'keys': [{'k': 1}]}
    """
    if isinstance(config, Mapping):
        return {key: without_descriptions(value) for key, value in config.items() if key != "_desc_"}
    if isinstance(config, list):
        return [without_descriptions(value) for value in config]
    return config


def config_as_used(config: str | os.PathLike, overrides: Mapping[str, Any]) -> str:
    """A config's text with the overrides applied, except the weights' path, which nobody else has."""
    from monai.bundle import ConfigParser  # the command line answers --help without it

    parser = ConfigParser(json.loads(Path(config).read_text(encoding="utf-8")))
    parser.update(literal({key: value for key, value in overrides.items() if key != "checkpoint"}))
    return json.dumps(parser.get(), indent=4) + "\n"


def check_overrides(files: Sequence[str], overrides: Mapping[str, Any]) -> None:
    """Check that every override's key exists, and that it is a number, numbers or a boolean where the config's is.

    Raises:
        DriveSegError: naming the first that fails and, for an unknown key, the nearest; or a file that is not JSON.
    """
    for file in files:
        _read_json(file)
    known = config_keys(_merged(files))
    for key, value in overrides.items():
        _check_number(key, value, _check_key(key, known))


def _read_json(file: str) -> dict[str, Any]:
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise DriveSegError(f"{file}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise DriveSegError(f"{file}: expected an object of keys, got {type(content).__name__}")
    return content


def _merged(files: Sequence[str]) -> dict[str, Any]:
    from monai.bundle import ConfigParser  # the command line answers --help without it

    return ConfigParser.load_config_files(list(files))


def _check_key(key: str, known: Mapping[str, Any], where: str = "") -> Any:
    """The value of a key that must exist."""
    normal = key.replace("#", "::")
    if normal in known:
        return known[normal]
    nearest = difflib.get_close_matches(normal, sorted(known), n=1, cutoff=0.5)
    hint = f", did you mean {nearest[0]}?" if nearest else ""
    raise DriveSegError(f"{where}{key}: the config has no such key{hint}")


def _check_number(key: str, value: Any, default: Any) -> None:
    """Check no more than this: the part that takes a value knows best what else it may be."""
    if isinstance(default, bool) and _is_no_truth(value):
        raise DriveSegError(f"{key}: expected true or false, got {value!r}")
    several = isinstance(default, list) and bool(default) and all(_is_number(item) for item in default)
    if not (several or _is_number(default)) or value is None:
        return
    if type(default) is int and isinstance(value, float):
        raise DriveSegError(
            f"{key}: expected a whole number without point or exponent, such as {default} in the config, got {value!r}"
        )
    # Where the config has a list, one number may stand for all.
    items = value if several and isinstance(value, (list, tuple)) else [value]
    if not all(_is_number(item) or (isinstance(item, str) and item.startswith(SPECIAL)) for item in items):
        expected = "numbers" if several else "a number"
        raise DriveSegError(f"{key}: expected {expected}, such as {default} in the config, got {value!r}")


def _is_no_truth(value: Any) -> bool:
    """Whether a value stands for neither true nor false; 8 mirror images, for one, are more than true."""
    if isinstance(value, str):
        return not value.startswith(SPECIAL)
    return value is None or (type(value) is int and value in (0, 1))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _keys(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    from monai.bundle import ReferenceResolver  # the command line answers --help without it

    for key, name, value in ReferenceResolver.iter_subconfigs(prefix, config):
        if key == "_desc_":
            continue
        yield name, value
        if isinstance(value, (dict, list)):
            yield from _keys(value, name)


def _parse_value(text: str) -> Any:
    if _DATED.fullmatch(text):
        return text
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, TypeError):
            continue
    return text
