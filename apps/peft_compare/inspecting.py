"""One adapter that somebody gave, looked at apart: what it is, what it does, what it can be written as.

card.json grows while it works: first what the file says (`inspect`), then each export, then the change of every weight.
Nothing of the file is believed: only safetensors and JSON are read, and of the base's name only models that are known.
"""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import BadZipFile, ZipFile, ZipInfo

import timm
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

from diffusion_peft.embedded import NAMES as PIPELINES
from peft_compare.refusals import RefusedError
from peft_kernels.adapter_files import AdapterError, read_config, refuse_pickle
from peft_kernels.adapter_formats import recognise
from peft_kernels.adapter_tensors import read_header
from peft_runs.adapter_changes import WeightChange, changes_in_file
from peft_runs.adapter_exports import MERGED, Export, changes_by_merging, export_all
from peft_runs.adapter_readers import PIPELINE, TIMM
from peft_runs.adapter_report import Report, inspect_adapter
from peft_runs.base_models import bare_model
from peft_runs.durable import write_json

CARD, ADAPTER, EXPORTS = "card.json", "adapter", "exports"
LARGEST_BASE = 400_000_000  # parameters of a base model that is merged here
_SINGULAR = 256  # singular values that are kept of a weight
_MEMBERS = 10_000  # files in a zip
_WEIGHTS = ".safetensors"
_ADVICE = re.compile(r"(; --to merged writes|: use --to merged for).*", re.DOTALL)  # for the command line


def look_at(given: Path, out: Path, model: str | None, limit: int) -> None:
    """Look at the adapter that was uploaded into the folder `given`, and leave all about it in `out`.

    Args:
        given: holds the uploaded files, or one zip of them.
        out: gets `adapter/`, `exports/` and `card.json`.
        model: compare with this one, and merge into it, instead of the one that the adapter names.
        limit: bytes that an upload may unpack to.

    Raises:
        RefusedError, AdapterError, UsageError: there is no adapter, it is damaged or a pickle, or the model is unknown.
    """
    unpack(given, out / ADAPTER, limit)
    source = _whole(out / ADAPTER)
    named = _named_base(source)
    base = model or (named if kind_of(named) else None)
    if base is not None and kind_of(base) is None:
        raise RefusedError(f"{base!r} is no model that is known here: take one of timm's, or {' or '.join(PIPELINES)}")
    report = inspect_adapter(source, base)
    report.base_model = named or report.base_model
    report.file = source.name  # a visitor learns no path of this machine
    card: dict[str, Any] = {"report": report.as_dict(), "base": base, "made_with": made_with(source, report)}

    def keep(**more: Any) -> None:
        card.update(more)
        write_json(out / CARD, card)

    exports, merged = [], None
    keep(stage="exports", exports=exports)
    for export in _exports(source, out / EXPORTS, base):
        exports.append(_plain(export, out, str(source)))
        merged = export if export.format == MERGED and export.path is not None else merged
        keep(exports=exports)
    keep(stage="changes")
    keep(stage="done", **_changes(source, merged))
    for folder in (path for path in (out / EXPORTS).glob("*") if path.is_dir()):
        shutil.rmtree(folder)  # its zip stays


def kind_of(base: str | None) -> str | None:
    """Whether a name is one of timm's, or of an embedded pipeline; never a path or an address."""
    if base in PIPELINES:
        return PIPELINE
    return TIMM if base and timm.is_model(base) and ":" not in base else None


# --- the upload ----------------------------------------------------------------------------------------------------
def unpack(given: Path, target: Path, limit: int) -> None:
    """Put the one adapter among uploaded files into a new folder, under the names that PEFT gives them.

    Raises:
        RefusedError: there is none, or more than one, or it is too large.
        AdapterError: it is a pickle.
    """
    target.mkdir(parents=True)
    files = sorted(path for path in given.iterdir() if path.is_file())
    if len(files) == 1 and files[0].suffix.lower() == ".zip":
        _unzip(files[0], target, limit)
        return
    names = {path.name: path for path in files}
    for name, place in _chosen(list(names)).items():
        shutil.copyfile(names[name], target / place)


def _unzip(path: Path, target: Path, limit: int) -> None:
    try:
        with ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist() if not info.is_dir()}
            if len(members) > _MEMBERS:
                raise RefusedError(f"{path.name} holds {len(members):,} files; an adapter is two")
            chosen = _chosen(list(members))
            size = sum(members[name].file_size for name in chosen)
            if size > limit:
                raise RefusedError(f"{path.name} unpacks to {size:,} bytes; at most {limit:,} may be")
            for name, place in chosen.items():
                _write(archive, members[name], target / place)
    except (BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise RefusedError(f"{path.name} is no readable zip: {error}") from None


def _write(archive: ZipFile, member: ZipInfo, target: Path) -> None:
    """Unpack one file; its size is what the zip's directory says, or reading fails."""
    with archive.open(member) as source, target.open("wb") as file:
        shutil.copyfileobj(source, file, 2**20)


def _chosen(names: list[str]) -> dict[str, str]:
    """The files of the adapter among `names` -> how they are to be called."""
    paths = {name: PurePosixPath(name) for name in names if not PurePosixPath(name).name.startswith(".")}
    configs = [name for name, path in paths.items() if path.name == CONFIG_NAME]
    if len(configs) > 1:
        raise RefusedError(f"there are {len(configs)} adapters in it ({', '.join(sorted(configs)[:3])} ...): give one")
    inside = {name: path for name, path in paths.items() if not configs or path.parent == paths[configs[0]].parent}
    weights = [name for name, path in inside.items() if path.suffix.lower() == _WEIGHTS]
    usual = [name for name in weights if paths[name].name == SAFETENSORS_WEIGHTS_NAME]
    weights = usual if configs and usual else weights
    if len(weights) != 1:
        for path in inside.values():
            refuse_pickle(Path(path.name))
        found = ", ".join(sorted(path.name for path in paths.values())[:5]) or "nothing"
        what = "no safetensors file" if not weights else f"{len(weights)} safetensors files"
        raise RefusedError(f"{what} in it (found {found}): an adapter is {SAFETENSORS_WEIGHTS_NAME} and {CONFIG_NAME}")
    return {weights[0]: SAFETENSORS_WEIGHTS_NAME, **dict.fromkeys(configs, CONFIG_NAME)}


def _whole(folder: Path) -> Path:
    """The adapter's folder; without a configuration, its file."""
    return folder if (folder / CONFIG_NAME).is_file() else folder / SAFETENSORS_WEIGHTS_NAME


def _named_base(source: Path) -> str | None:
    """The base that the configuration names, which is taken out of it unless it is known: it could be any path."""
    path = source / CONFIG_NAME
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None  # `inspect` says what is wrong
    named = values.get("base_model_name_or_path") if isinstance(values, dict) else None
    if named is not None and (not isinstance(named, str) or kind_of(named) is None):
        write_json(path, {**values, "base_model_name_or_path": None})
    return named if isinstance(named, str) else None


def made_with(source: Path, report: Report) -> str | None:
    """The program that wrote the file, where it says so."""
    if source.is_dir():
        try:
            version = getattr(read_config(source / CONFIG_NAME), "peft_version", None)
        except AdapterError:
            version = None
        return f"PEFT {version}" if version else None
    if "lora_adapter_metadata" in report.metadata:
        return "diffusers"
    return report.metadata.get("ss_network_module")


# --- what it can be written as, and what it does -------------------------------------------------------------------
def _exports(source: Path, out: Path, base: str | None) -> Iterator[Export]:
    kind = kind_of(base)
    if base is None or kind is None:
        return
    out.mkdir()
    size = sum(parameter.numel() for parameter in bare_model(base, {}).parameters())
    dear = f"{base} has {size:,} parameters, and at most {LARGEST_BASE:,} are merged here: use `{_program(kind)} merge`"
    yield from export_all(source, out, kind, base, {MERGED: dear} if size > LARGEST_BASE else {})


def _program(kind: str) -> str:
    return "vision-peft" if kind == TIMM else "diffusion-peft"


def _plain(export: Export, out: Path, source: str) -> dict[str, Any]:
    """As JSON takes it; beside a folder a zip of it is made."""
    path = export.path
    if path is not None and path.is_dir():
        shutil.make_archive(str(path), "zip", path)
        path = path.with_name(f"{path.name}.zip")
    merged = None if export.merged is None else asdict(export.merged)
    place = None if path is None else path.relative_to(out).as_posix()
    reason = export.reason and _ADVICE.sub("", export.reason).replace(source, "this adapter")
    return {**asdict(export), "path": place, "reason": reason, "merged": merged}


def _changes(source: Path, merged: Export | None) -> dict[str, Any]:
    """The change of every weight: from the merged model where there is one, otherwise as far as the file tells it."""
    weights = source / SAFETENSORS_WEIGHTS_NAME if source.is_dir() else source
    if merged is not None:
        return {"changes_from": "weights", "changes": [_as_json(c) for c in changes_by_merging(weights, merged)]}
    try:
        config = read_config(source / CONFIG_NAME) if source.is_dir() else None
    except AdapterError:
        config = None
    found = recognise(read_header(weights)[0])
    return {"changes_from": "file", "changes": [_as_json(c) for c in changes_in_file(weights, found, config)]}


def _as_json(change: WeightChange) -> dict[str, Any]:
    plain = {**asdict(change), "effective_rank": change.effective_rank}
    return {**plain, "singular": [float(f"{value:.4g}") for value in change.singular[:_SINGULAR]]}
