"""What DiffFit trains where: the model's modules by class, never by name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from diffusion_peft.methods.difffit.sites import factor_sites
from peft_kernels.targets import head_names, plain_modules, raw_parameters

if TYPE_CHECKING:
    from diffusion_peft.methods.difffit.config import DiffFitConfig

Rows = tuple[int, int]
Shape = tuple[int, ...]
_NORMS = (
    nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm,
)  # fmt: skip
_NORM_CLASSES = ("RMSNorm", "RmsNorm", "RmsNorm2d", "SimpleNorm", "SimpleNorm2d")  # of model libraries
# Tables of shifts and scales that PixArt and its kin hold as raw parameters, a bias on what the timestep gives.
_BIAS_TABLES = ("scale_shift_table",)
# Class of diffusers of which some models hold identical copies, one in every block.
_REPLICATED = ("CombinedTimestepLabelEmbeddings",)


@dataclass
class Place:
    """What is trained at one module.

    Attributes:
        factors: the rows of each factor by site, ``None`` for all.
        trained: shapes of the tensors that get a summand.
        tied_to: the module whose parameters it shares.
        classes: for a class table, the new number of classes.
        positions: for a patch embedding, the factor on its coordinates.
        keep_input: the factors' gradient is to be computed from the input: diffusers' attention divides its output by
            a number, so that what its gate keeps is a copy, while the input is what the attention itself keeps.
    """

    factors: dict[str, Rows | None] = field(default_factory=dict)
    trained: dict[str, Shape] = field(default_factory=dict)
    tied_to: str | None = None
    classes: int | None = None
    positions: float | None = None
    keep_input: bool = False

    def __bool__(self) -> bool:
        return bool(self.factors or self.trained or self.classes or self.positions)


def places(config: DiffFitConfig, model: nn.Module) -> dict[str, Place]:
    """The places of ``model`` by module name; raw parameters are in `raw_tensors`.

    Raises:
        ValueError: factors, embeddings, classes or positions asked for where there are none.
    """
    modules, factors = dict(plain_modules(model)), factor_sites(config, model)
    tables = _tables(config, modules)
    whole = _whole(config, model, modules, tables)
    found: dict[str, Place] = {}
    for name, module in modules.items():
        parent = name.rpartition(".")[0]
        if not name or any(f"{name}.".startswith(f"{outer}.") for outer in whole):
            continue
        place = Place(factors.get(name, {}), trained(config, module, name in tables))
        attention = modules.get(parent.rpartition(".")[0])
        place.keep_input = hasattr(attention, "rescale_output_factor") and not getattr(
            attention, "added_kv_proj_dim", 0
        )
        found[name] = place
    found.update({name: place for name, place in whole.items() if place is not None})
    if config.tie_replicated:
        _tie(found, modules)
    return {name: place for name, place in found.items() if place}


def raw_tensors(config: DiffFitConfig, model: nn.Module) -> list[str]:
    """Raw parameters that are trained: biases, tables of shifts and scales, layer scales in the place of factors."""
    modules = dict(plain_modules(model))
    owners = [n for n, m in modules.items() if n and (isinstance(m, nn.MultiheadAttention) or not list(m.children()))]
    names = raw_parameters(model, owners)
    biases = [
        n for n in names if _last(n) in _BIAS_TABLES or (_last(n).endswith("bias") and model.get_parameter(n).ndim == 1)
    ]
    scales = [name for name in factor_sites(config, model) if name in names]
    return [*(biases if config.train_bias else []), *scales]


def trained(config: DiffFitConfig, module: nn.Module, is_table: bool = False) -> dict[str, Shape]:
    """The tensors of a module that get a summand, by shape."""
    own = {name: tuple(p.shape) for name, p in module.named_parameters(recurse=False)}
    if any(True for _ in module.children()) and not isinstance(module, nn.MultiheadAttention):
        return {}  # what it holds itself are raw parameters
    if isinstance(module, nn.MultiheadAttention):
        own |= {f"out_proj.{n}": tuple(p.shape) for n, p in module.out_proj.named_parameters(recurse=False)}
    biases = {name: shape for name, shape in own.items() if name.endswith("bias") and len(shape) == 1}
    if is_norm(module):
        found = {name: own[name] for name in ("weight",) if name in own and config.train_norm}
        found |= biases if config.train_bias or config.train_norm else {}
        if config.add_norm_affine and not own and isinstance(module, nn.LayerNorm):
            return dict.fromkeys(("weight", "bias"), tuple(module.normalized_shape))
        return found
    if is_table:
        return {"weight": own["weight"]}
    if config.add_bias and isinstance(module, nn.Linear) and module.bias is None:
        return {"bias": (module.out_features,)}
    return biases if config.train_bias else {}


def is_norm(module: nn.Module) -> bool:
    """Whether the module's class is a normalisation layer, not one that modulates a normalised input."""
    return isinstance(module, _NORMS) or any(cls.__name__ in _NORM_CLASSES for cls in type(module).__mro__)


def is_class_table(module: Any) -> bool:
    """Whether the module embeds labels and drops some to the null class, as `LabelEmbedding` of diffusers and DiT."""
    return "embedding_table" in module._modules and isinstance(getattr(module, "num_classes", None), int)


def is_patch_embedding(module: Any) -> bool:
    """Whether the module adds diffusers' sin-cos position table, of which other sizes are computed (not cropped)."""
    table = getattr(module, "pos_embed", None) is not None and hasattr(module, "interpolation_scale")
    return table and getattr(module, "pos_embed_max_size", None) is None


def _tables(config: DiffFitConfig, modules: dict[str, nn.Module]) -> list[str]:
    embeddings = [name for name, module in modules.items() if isinstance(module, nn.Embedding)]
    if isinstance(config.train_embedding, str):
        chosen = [name for name in embeddings if re.fullmatch(config.train_embedding, name)]
        if not chosen:
            raise ValueError(
                f"DiffFitConfig.train_embedding matches no embedding layer: {config.train_embedding!r}; "
                f"there are {', '.join(embeddings[:5]) or 'none'}"
            )
        return chosen
    if not config.train_embedding:
        return []
    classes = [f"{name}.embedding_table" for name, module in modules.items() if is_class_table(module)]
    return [*classes, *(name for name in embeddings if _last(name) == "class_embedding")]


def _whole(
    config: DiffFitConfig, model: nn.Module, modules: dict[str, nn.Module], tables: list[str]
) -> dict[str, Place | None]:
    """Modules that are adapted as a whole, and (``None``) those that are left alone."""
    wanted = head_names(model) if config.modules_to_save is None else config.modules_to_save
    found: dict[str, Place | None] = {n: None for n in modules if n and any(n.endswith(w) for w in wanted)}
    found |= {n: Place(trained=trained(config, m)) for n, m in modules.items() if isinstance(m, nn.MultiheadAttention)}
    if config.num_classes is not None:
        labels = [name for name, module in modules.items() if is_class_table(module)]
        _need(labels, f"DiffFitConfig.num_classes={config.num_classes}", model, "class table")
        found |= {name: Place(classes=config.num_classes) for name in labels}
    if config.pos_scale is not None:
        patches = [name for name, module in modules.items() if is_patch_embedding(module)]
        _need(patches, f"DiffFitConfig.pos_scale={config.pos_scale}", model, "computed sin-cos position table")
        for name in patches:
            inner = {n: trained(config, m) for n, m in modules[name].named_modules() if n}
            tensors = {f"{n}.{leaf}": shape for n, own in inner.items() for leaf, shape in own.items()}
            found[name] = Place(trained=tensors, positions=config.pos_scale)
    return found


def _need(found: list[str], field_value: str, model: nn.Module, what: str) -> None:
    if not found:
        raise ValueError(f"{field_value} asks for a {what}, which {type(model).__name__} does not have")


def _tie(found: dict[str, Place], modules: dict[str, nn.Module]) -> None:
    copies = [name for name, module in modules.items() if type(module).__name__ in _REPLICATED]
    for copy in copies[1:]:
        for name in _below(found, copy):
            found[name].tied_to = copies[0] + name.removeprefix(copy)


def _below(names: dict[str, Place], path: str) -> Iterator[str]:
    return (name for name in names if name.startswith(f"{path}."))


def _last(name: str) -> str:
    return name.rpartition(".")[2]
