"""Where a saved adapter lies and what its configuration says. Both are data: nothing is imported, run or unpickled.

An adapter is PEFT's folder of two files, ``adapter_config.json`` and ``adapter_model.safetensors``. Files that other
people made are read here, so every check comes before any use, and each failure is one sentence that names the file.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME

from peft_kernels.config import nearest
from peft_kernels.registry import methods

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_LARGEST_CONFIG = 2**20  # bytes; a configuration is a page of text
# Fields whose value would have PEFT import a module that the file names, or read folders that it names.
_REFUSED_FIELDS = {"megatron_config": "it makes PEFT import the module that the file names in `megatron_core`"}
_REFUSED_TYPES = {"XLORA": "it reads further adapters from paths that the file names"}


class AdapterError(ValueError):
    """A saved adapter is damaged, unsafe, or not for this model; nothing has been changed."""

    exit_code = 1


@dataclasses.dataclass(frozen=True)
class AdapterFiles:
    """The two files of a saved adapter."""

    config: Path
    weights: Path


def find_adapter(path: str | Path, subfolder: str | None = None, revision: str | None = None) -> AdapterFiles:
    """The files of the adapter in a folder, or of a repository on the Hugging Face hub.

    Args:
        path: a folder, or ``owner/name`` on the hub where there is no such folder.
        subfolder: the adapter's folder within it.
        revision: branch, tag or commit on the hub; a commit is the only one that cannot change.

    Raises:
        AdapterError: there is no adapter, it is a pickle, or a name or link in it leads out of the folder.
    """
    folder = Path(path).expanduser()
    if folder.is_file():
        refuse_pickle(folder)
        raise AdapterError(f"{path} is a file: give the folder that holds {CONFIG_NAME} and {SAFETENSORS_WEIGHTS_NAME}")
    if not folder.is_dir():
        if folder.suffix.lower() in (".safetensors", *PICKLES):
            raise AdapterError(f"there is no file {path}")
        return _from_hub(str(path), subfolder, revision)
    root = folder.resolve()
    inner = within(root, subfolder) if subfolder else root
    files = AdapterFiles(within(root, inner / CONFIG_NAME), within(root, inner / SAFETENSORS_WEIGHTS_NAME))
    if not files.config.is_file():
        found = next((f"; did you mean {p.parent}?" for p in sorted(folder.glob(f"*/{CONFIG_NAME}"))), "")
        raise AdapterError(f"there is no adapter in {path}: {CONFIG_NAME} is missing{found}")
    if not files.weights.is_file():
        for name in (WEIGHTS_NAME, *(child.name for child in sorted(inner.iterdir()))):
            if (inner / name).is_file():
                refuse_pickle(inner / name)
        raise AdapterError(f"there is no adapter in {path}: {SAFETENSORS_WEIGHTS_NAME} is missing")
    return files


def refuse_pickle(path: Path) -> None:
    """Raise if the file is a pickle by its name.

    Raises:
        AdapterError: it is; the message says how to convert it.
    """
    if path.suffix.lower() in PICKLES:
        raise AdapterError(
            f"{path} is a pickle, which can run code while it is read, so only safetensors are loaded: "
            f"if you trust its author, convert it once with the command `convert {path} --out FILE.safetensors`"
        )


def within(root: Path, name: str | Path) -> Path:
    """The real path of ``root / name``.

    Raises:
        AdapterError: it lies outside ``root`` (``..``, an absolute path, a link).
    """
    found = (root / name).resolve()
    allowed = [root.resolve()]
    # The hub's cache keeps the files of a snapshot as links into the blobs of the same repository.
    allowed += [p.parent for p in (root, *root.parents) if p.name == "snapshots" and (p.parent / "blobs").is_dir()]
    if not any(found.is_relative_to(place) for place in allowed):
        raise AdapterError(f"{root / name} leads out of the adapter's folder, to {found}: it is not read")
    return found


def _from_hub(repository: str, subfolder: str | None, revision: str | None) -> AdapterFiles:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except ValueError:
        raise AdapterError(f"there is no adapter at {repository}: no such folder") from None
    try:
        config, weights = (
            hf_hub_download(repository, name, subfolder=subfolder, revision=revision)
            for name in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME)
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise AdapterError(
            f"there is no folder {repository!r} here, and no adapter of that name could be fetched from the hub "
            f"({CONFIG_NAME} and {SAFETENSORS_WEIGHTS_NAME}): {reason}"
        ) from None
    return AdapterFiles(Path(config), Path(weights))


def read_config(path: Path) -> PeftConfig:
    """The configuration in a file: known fields with plain values, of a method that is installed.

    Raises:
        AdapterError: no JSON object, an unknown method or field (the nearest is told), a value of another kind, or a
            field that would have code or other files loaded.
    """
    values = _read_json(path)
    methods()  # registers what `peft_type` may name
    name = values.pop("peft_type", None)
    known = {str(kind.value): cls for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if not isinstance(name, str) or name not in known:
        raise AdapterError(f"{path}: peft_type {name!r} is no installed method{nearest(name, known)}")
    cls = known[name]
    if name in _REFUSED_TYPES:
        raise AdapterError(f"{path}: adapters of type {name} are not loaded: {_REFUSED_TYPES[name]}")
    trained_on = values.pop("auto_mapping", None)  # a class's name; it is told and never imported
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init and field.name != "peft_type"}
    for key, value in values.items():
        if key not in fields:
            raise AdapterError(f"{path}: {name} has no field {key!r}{nearest(key, fields)}{_written_by(values)}")
        if value is not None and key in _REFUSED_FIELDS:
            raise AdapterError(f"{path}: the field {key!r} is not accepted: {_REFUSED_FIELDS[key]}")
    _check_kinds(path, cls, fields, values)
    try:
        config = cls(**values)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise AdapterError(f"{path}: {' '.join(str(error).split())}") from None
    known_class = trained_on.get("base_model_class") if isinstance(trained_on, dict) else None
    if isinstance(known_class, str) and known_class.isidentifier():
        config.auto_mapping = {"base_model_class": known_class}
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise AdapterError(
            f"{path}: {name} learns prompts of a language model, which this function does not load: "
            "use `PeftModel.from_pretrained`"
        )
    return config


def _read_json(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    if size > _LARGEST_CONFIG:
        raise AdapterError(f"{path} has {size:,} bytes; a configuration has at most {_LARGEST_CONFIG:,}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path} is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise AdapterError(f"{path} must hold one JSON object, found {_kind(values)}")
    return values


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


def _written_by(values: Mapping[str, Any]) -> str:
    from peft import __version__

    version = values.get("peft_version")
    return f"; the file was written with PEFT {version}, installed is {__version__}" if version != __version__ else ""


# --- the kind of a value against the field's annotation ------------------------------------------------------------
_KINDS: tuple[tuple[tuple[type, ...], str], ...] = (
    ((bool,), "true or false"),
    ((str,), "text"),
    ((int, float), "a number"),
    ((list, tuple, set, frozenset), "a list"),
    ((dict,), "a mapping"),
    ((type(None),), "null"),
)


def _kind(value: Any) -> str:
    return next((name for kinds, name in _KINDS if isinstance(value, kinds)), type(value).__name__)


def _kinds(hint: Any) -> Set[str] | None:
    """The kinds of JSON values that an annotation allows; ``None`` where it does not tell."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = [_kinds(part) for part in typing.get_args(hint)]
        return None if None in parts else {kind for part in parts if part for kind in part}
    if typing.get_origin(hint) is typing.Literal:
        return {_kind(value) for value in typing.get_args(hint)}
    cls = typing.get_origin(hint) or hint
    if dataclasses.is_dataclass(cls):
        return {"a mapping"}
    if isinstance(cls, type):
        return next(({name} for kinds, name in _KINDS if issubclass(cls, kinds)), None)
    return None


def _check_kinds(path: Path, cls: type, fields: Mapping[str, dataclasses.Field], values: Mapping[str, Any]) -> None:
    hints = typing.get_type_hints(cls)
    for key, value in values.items():
        allowed = _kinds(hints.get(key, Any))
        if value is None and fields[key].default is None:
            continue
        if allowed is not None and _kind(value) not in allowed:
            raise AdapterError(f"{path}: the field {key!r} must be {' or '.join(sorted(allowed))}; found {value!r:.80}")
