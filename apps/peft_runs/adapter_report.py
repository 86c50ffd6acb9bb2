"""What a person wants to know of an adapter's file: method, ranks, size, norms, and whether it fits a model.

Nothing is attached or run; tensors are read a layer at a time.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import timm
from peft import PeftConfig
from peft.utils import CONFIG_NAME
from peft.utils.constants import DUMMY_TARGET_MODULES

from peft_kernels.adapter_files import AdapterError, find_adapter, read_config, refuse_pickle
from peft_kernels.adapter_fit import match
from peft_kernels.adapter_formats import Recognised, recognise
from peft_kernels.adapter_tensors import TensorInfo, read_header
from peft_kernels.loading import expected_tensors
from peft_kernels.registry import methods
from peft_runs.adapter_layers import LayerReport, read_layers
from peft_runs.adapter_readers import PIPELINE, TIMM, readers
from peft_runs.base_models import bare_model, is_pipeline
from peft_runs.errors import UsageError

# Fields that describe the file and not the method.
_NOTES = {field.name for field in dataclasses.fields(PeftConfig)} | {"target_modules", "modules_to_save"}


@dataclass
class Fit:
    """The file against a base model: keys, and for misfits and changed names what was found and expected.

    Of a file without configuration layers are counted; ``text`` are those for a pipeline's text encoders.
    """

    model: str
    matched: int
    share: float
    misfits: list[str]
    missing: list[str]
    unexpected: list[str]
    text: list[str] = field(default_factory=list)


@dataclass
class Report:
    """Everything `inspect` tells, as plain data (`asdict`)."""

    file: str
    naming: str
    method: str
    base_model: str | None
    bytes: int
    parameters: int
    dtypes: dict[str, int]
    ranks: dict[int, int]
    alphas: list[float]
    settings: dict[str, Any]
    targets: str | list[str] | None
    trained_in_full: list[str]
    metadata: dict[str, str]
    readers: dict[str, str]
    fit: Fit | None = None
    problems: list[str] = field(default_factory=list)
    layers: list[LayerReport] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON takes it."""
        return asdict(self)


def inspect_adapter(path: Path, model_name: str | None = None) -> Report:
    """Read the adapter in a folder or file; with ``model_name``, or where the file names a model that is here, compare.

    Raises:
        AdapterError: there is no adapter, it is a pickle, or damaged.
        UsageError: there is no such path, or no such model.
    """
    config_file, weights = _files(path)
    infos, metadata = read_header(weights)
    problems, config = [], None
    if config_file is not None:
        try:
            config = read_config(config_file)
        except AdapterError as error:
            problems.append(str(error))
    found = recognise(infos)
    targets = _plain(getattr(config, "target_modules", None))
    layers, alphas = read_layers(weights, found, config)
    problems += [f"{layer.name} holds NaN or infinity" for layer in layers if layer.norm is None]
    base = config.base_model_name_or_path if config else metadata.get("ss_sd_model_name")
    kind = _kind_of_base(base)
    report = Report(
        file=str(weights),
        naming=found.naming,
        method=_method(found, config),
        base_model=base,
        bytes=weights.stat().st_size,
        parameters=sum(math.prod(info.shape) for info in infos.values() if info.dtype.lstrip("B").startswith("F")),
        dtypes=dict(Counter(info.dtype for info in infos.values())),
        ranks=dict(sorted(Counter(layer.rank for layer in layers if layer.rank).items())),
        alphas=alphas,
        settings=_settings(config),
        targets=None if targets == DUMMY_TARGET_MODULES else targets,
        trained_in_full=sorted(found.full),
        metadata=metadata,
        readers=readers(found, _type(config), kind),
        problems=problems,
        layers=layers,
    )
    wanted = model_name or (base if kind else None)
    if wanted:
        report.fit = _fit(wanted, infos, found, config, str(weights), problems)
    return report


def _kind_of_base(base: str | None) -> str | None:
    if base is None:
        return None
    if timm.is_model(base):
        return TIMM
    return PIPELINE if is_pipeline(base) else None


def _files(path: Path) -> tuple[Path | None, Path]:
    if path.is_file():
        refuse_pickle(path)
        config = path.with_name(CONFIG_NAME)
        return (config if config.is_file() else None), path
    if not path.is_dir():
        raise UsageError(f"there is no file or folder {path}")
    if (path / CONFIG_NAME).is_file():
        files = find_adapter(path)
        return files.config, files.weights
    single = sorted(path.glob("*.safetensors"))
    if len(single) != 1:
        raise UsageError(f"{path} holds {len(single)} safetensors files and no {CONFIG_NAME}: name one file")
    return None, single[0]


def _method(found: Recognised, config: PeftConfig | None) -> str:
    """The method's name in the table of methods, or PEFT's or the world's name for it."""
    if config is not None:
        for name, method in methods().items():
            if type(config) is not method.config_class:
                continue
            if all(getattr(config, key) == value for key, value in method.fixed.items()):
                return name
        return str(_type(config))
    if not found.kinds and found.full:
        return "modules trained in full"
    return " + ".join(found.kinds) or "none that is known"


def _type(config: PeftConfig | None) -> str | None:
    return None if config is None else str(getattr(config.peft_type, "value", config.peft_type))


def _settings(config: PeftConfig | None) -> dict[str, Any]:
    """The fields that are not at their defaults."""
    if config is None:
        return {}
    given, plain = {}, config.to_dict()
    for entry in dataclasses.fields(config):
        default = entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()
        value = getattr(config, entry.name)
        if entry.name not in _NOTES and value != default:
            given[entry.name] = _plain(plain.get(entry.name))
    return given


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, (set, frozenset)) else value


# --- against a model -----------------------------------------------------------------------------------------------
def _fit(
    name: str,
    infos: Mapping[str, TensorInfo],
    found: Recognised,
    config: PeftConfig | None,
    source: str,
    problems: list[str],
) -> Fit:
    model = bare_model(name, infos)
    if config is not None:
        try:
            expected = expected_tensors(model, config, source).tensors
        except AdapterError as error:
            problems.append(str(error))
        else:
            result = match(expected, infos)
            misfits = [
                f"{key}: shape {infos[key].shape} of {infos[key].dtype}, expected {tuple(expected[key].shape)}"
                for key in result.misfits
            ]
            return Fit(name, len(result.matched), result.share, misfits, result.missing, result.unexpected)
    from diffusion_peft.formats.reading import resolve  # late: diffusers' loaders take long to import

    names = resolve(found, model)  # without a configuration only the names of the layers can be compared
    return Fit(name, len(names.matched), names.share, [], [], names.unmatched, names.text)
