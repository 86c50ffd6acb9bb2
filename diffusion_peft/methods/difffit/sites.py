"""Where DiffFit's factors stand: the blocks of every architecture family in the order of the forward pass, and in each
block the linear layers whose output a site names.

A family is recognised by the class name of its backbone. A layer may be a row block of a fused one (``attn.qkv[q]``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from peft_kernels.slices import bare, rows_of
from peft_kernels.targets import plain_modules

if TYPE_CHECKING:
    from diffusion_peft.methods.difffit.config import DiffFitConfig

SITES = ("attn_out", "ffn_out", "cross_out", "q", "k", "v", "o", "ffn_hidden", "ffn", "single_out")
DEFAULT_SITES = ("attn_out", "ffn_out")
Rows = tuple[int, int]


@dataclass(frozen=True)
class Family:
    """One architecture family.

    Attributes:
        classes: class names of its backbones.
        blocks: regular expressions of its blocks' names, in the order of the forward pass.
        sites: the layers of a block, by site.
    """

    classes: tuple[str, ...]
    blocks: tuple[str, ...]
    sites: dict[str, tuple[str, ...]]


def _fused(attention: str, mlp: str) -> dict[str, tuple[str, ...]]:
    heads = {name: (f"{attention}.qkv[{name}]",) for name in ("q", "k", "v")}
    out = (f"{attention}.proj",)
    return {"attn_out": out, "o": out, **heads, "ffn_out": (f"{mlp}.fc2",), "ffn": (f"{mlp}.fc2",),
            "ffn_hidden": (f"{mlp}.fc1",)}  # fmt: skip


def _joined(*attentions: str) -> dict[str, tuple[str, ...]]:
    """Attention and feed-forward as diffusers names them: ``attn1`` reads the picture, ``attn2`` the prompt."""
    heads = {name: tuple(f"{a}.to_{name}" for a in attentions) for name in ("q", "k", "v")}
    out = tuple(f"{a}.to_out.0" for a in attentions)
    sites = {"attn_out": out[:1], "o": out, **heads, "ffn_out": ("ff.net.2",), "ffn": ("ff.net.2",),
             "ffn_hidden": ("ff.net.0.proj",)}  # fmt: skip
    return sites if len(out) == 1 else {**sites, "cross_out": out[1:]}


_TWO_STREAMS = {
    "attn_out": ("attn.to_out.0", "attn.to_add_out", "attn2.to_out.0"),
    "o": ("attn.to_out.0", "attn.to_add_out", "attn2.to_out.0"),
    "q": ("attn.to_q", "attn.add_q_proj", "attn2.to_q"),
    "k": ("attn.to_k", "attn.add_k_proj", "attn2.to_k"),
    "v": ("attn.to_v", "attn.add_v_proj", "attn2.to_v"),
    "ffn_out": ("ff.net.2", "ff_context.net.2"),
    "ffn": ("ff.net.2", "ff_context.net.2"),
    "ffn_hidden": ("ff.net.0.proj", "ff_context.net.0.proj"),
}
_ENDS = {"attn_out": ("attn.proj",), "o": ("attn.proj",), "ffn_out": ("mlp.fc2",), "ffn": ("mlp.fc2",)}
_UNET = tuple(rf"{part}\.attentions\.\d+\.transformer_blocks\.\d+"
              for part in (r"down_blocks\.\d+", "mid_block", r"up_blocks\.\d+"))  # fmt: skip

FAMILIES = (
    Family(("DiT", "VisionTransformer", "VisionTransformerDistilled"), (r"blocks\.\d+",), _fused("attn", "mlp")),
    Family(("SwinTransformer",), (r"layers\.\d+\.blocks\.\d+",), _fused("attn", "mlp")),
    # These read the weight of their qkv themselves and add biases of their own: no factor stands on it.
    Family(("Eva", "Beit"), (r"blocks\.\d+",), _ENDS),
    Family(("SwinTransformerV2",), (r"layers\.\d+\.blocks\.\d+",), _ENDS),
    # A factor before a layer scale is that layer scale: it is trained instead.
    Family(("ConvNeXt",), (r"stages\.\d+\.blocks\.\d+",), {"ffn_out": ("gamma",), "ffn_hidden": ("mlp.fc1",)}),
    Family(("ResNet",), (), {}),  # the norm after every convolution has the factor
    Family(("DiTTransformer2DModel",), (r"transformer_blocks\.\d+",), _joined("attn1")),
    Family(("PixArtTransformer2DModel",), (r"transformer_blocks\.\d+",), _joined("attn1", "attn2")),
    Family(("UNet2DConditionModel",), _UNET, _joined("attn1", "attn2")),
    Family(("SD3Transformer2DModel",), (r"transformer_blocks\.\d+",), _TWO_STREAMS),
    Family(
        ("FluxTransformer2DModel",),
        (r"transformer_blocks\.\d+", r"single_transformer_blocks\.\d+"),
        {**_TWO_STREAMS, "single_out": ("proj_out",)},
    ),
    Family(
        ("CLIPTextModel", "CLIPTextModelWithProjection"),
        (r"(?:text_model\.)?encoder\.layers\.\d+",),
        {
            "attn_out": ("self_attn.out_proj",), "o": ("self_attn.out_proj",), "q": ("self_attn.q_proj",),
            "k": ("self_attn.k_proj",), "v": ("self_attn.v_proj",), "ffn_out": ("mlp.fc2",), "ffn": ("mlp.fc2",),
            "ffn_hidden": ("mlp.fc1",),
        },
    ),
)  # fmt: skip


def factor_sites(config: DiffFitConfig, model: nn.Module) -> dict[str, dict[str, Rows | None]]:
    """The factors of every layer: ``{module: {site: rows, or None for all}}``; a layer scale to be trained has none.

    Raises:
        ValueError: a site the model does not have, an index of no block, a pattern that names no layer.
    """
    modules = dict(plain_modules(model))
    places = _chosen(config, modules) if config.gamma_modules is not None else _known(config, model, modules)
    found: dict[str, dict[str, Rows | None]] = {}
    for site, target in places:
        name = bare(target)
        found.setdefault(name, {})[site] = None if name == target else _row_block(target, modules[name])
    return found


def _row_block(target: str, module: nn.Module) -> Rows:
    key = bare(target)
    rows = rows_of(_Targets([target]), key, module)
    assert rows is not None
    (block,) = rows.values()
    return block


@dataclass(frozen=True)
class _Targets:
    target_modules: list[str]


def _chosen(config: DiffFitConfig, modules: dict[str, nn.Module]) -> Iterator[tuple[str, str]]:
    for site, pattern in (config.gamma_modules or {}).items():
        rows = pattern[len(bare(pattern)) :] if pattern.endswith(tuple(f"[{name}]" for name in "qkv")) else ""
        names = [n for n in modules if re.fullmatch(pattern.removesuffix(rows), n)]
        if not names:
            raise ValueError(f"DiffFitConfig.gamma_modules[{site!r}] matches no module: {pattern!r}")
        yield from ((site, name + rows) for name in names)


def _known(config: DiffFitConfig, model: nn.Module, modules: dict[str, nn.Module]) -> Iterator[tuple[str, str]]:
    if not config.gamma_sites:
        return
    path, backbone, family = _find(model)
    prefix = f"{path}." if path else ""
    own = [n.removeprefix(prefix) for n in modules if n.startswith(prefix)]
    blocks = [prefix + n for pattern in family.blocks for n in own if re.fullmatch(pattern, n)]
    carried = {block: list(_in_block(config.gamma_sites, family, block, modules)) for block in blocks}
    carriers = [block for block in blocks if carried[block]]
    there = {site for block in carriers for site, _ in carried[block]}
    wrong = [site for site in config.gamma_sites if site not in there and site not in DEFAULT_SITES]
    if wrong or (family.sites and not there):
        there = {site for block in blocks for site, _ in _in_block(SITES, family, block, modules)}
        raise ValueError(
            f"DiffFitConfig.gamma_sites names {', '.join(wrong or config.gamma_sites)}, which "
            f"{type(backbone).__name__} does not have; "
            f"it has {', '.join(site for site in SITES if site in there) or 'none'}"
        )
    for index in config.block_indices(len(carriers)):
        yield from carried[carriers[index]]


def _in_block(sites: Any, family: Family, block: str, modules: dict[str, nn.Module]) -> Iterator[tuple[str, str]]:
    for site in sites:
        for layer in family.sites.get(site, ()):
            name = f"{block}.{layer}"
            if bare(name) in modules or layer in modules[block]._parameters:
                yield site, name
            elif layer == "gamma" and f"{block}.mlp.fc2" in modules:  # ConvNeXt without a layer scale
                yield site, f"{block}.mlp.fc2"


def _find(model: nn.Module) -> tuple[str, nn.Module, Family]:
    for path, module in plain_modules(model):
        names = {cls.__name__ for cls in type(module).__mro__}
        for family in FAMILIES:
            if names & set(family.classes):
                return path, module, family
    raise ValueError(
        f"DiffFit does not know where the blocks of {type(model).__name__} end: name the layers in `gamma_modules`, "
        "such as {'ffn_out': r'blocks\\.\\d+\\.mlp\\.fc2'}, or train no factors with gamma_sites=()"
    )
