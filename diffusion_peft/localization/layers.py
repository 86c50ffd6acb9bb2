"""The attention layers of a denoiser that read the text, numbered in the order in which they run.

A UNet runs down, middle, up, but registers its middle last: the order of `named_modules` is not the paper's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock
from peft import LoraConfig, PeftModel
from torch import nn

from diffusion_peft.denoiser import denoiser
from peft_kernels.config import nearest

UNET = ("down_blocks", "mid_block", "up_blocks")
OWN, ADDED = ("to_k", "to_v"), ("add_k_proj", "add_v_proj")
QKVO = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True)
class TextLayer:
    """One attention layer that reads the text.

    Attributes:
        index: its number in the order of execution, from 0.
        name: of the module of attention in the denoiser.
        projections: names within it of what makes the text's keys and values.
        heads: number of heads.
        joint: whether the text is a stream of its own, which every block changes and which has seen the picture.
        single: whether it shares the projections with the picture, as the first tokens (Flux' single blocks).
    """

    index: int
    name: str
    projections: tuple[str, str]
    heads: int
    joint: bool
    single: bool = False

    @property
    def block(self) -> str:
        """Name of the block that the attention is part of."""
        return self.name.rpartition(".")[0]

    @property
    def projection_names(self) -> list[str]:
        """Whole names of the projections of keys and values."""
        return [f"{self.name}.{projection}" for projection in self.projections]


def bare(model: Any) -> Any:
    """The denoiser itself, out of a pipeline or a `PeftModel`."""
    model = denoiser(model)
    return model.get_base_model() if isinstance(model, PeftModel) else model


def text_layers(model: Any) -> list[TextLayer]:
    """All layers of a denoiser, or of a pipeline's, that make keys and values of text.

    Cross-attention of UNets and transformers (``to_k``, ``to_v``), added keys and values of DeepFloyd IF and joint
    attention of SD3 and Flux (``add_k_proj``, ``add_v_proj``); last Flux' single blocks.

    Raises:
        ValueError: there is none.
    """
    model = bare(model)
    unet = hasattr(model, "down_blocks")
    found = []
    for name, module in _in_order(model):
        if isinstance(module, FluxSingleTransformerBlock):
            found.append(TextLayer(len(found), f"{name}.attn", OWN, int(module.attn.heads), True, single=True))
            continue
        added = getattr(module, "add_k_proj", None) is not None
        if added or getattr(module, "is_cross_attention", False):
            heads = int(module.heads)  # type: ignore[arg-type]
            found.append(TextLayer(len(found), name, ADDED if added else OWN, heads, added and not unet))
    if not found:
        raise ValueError(f"{type(model).__name__} has no attention layer that reads text")
    return found


def _in_order(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if not hasattr(model, "down_blocks"):
        yield from model.named_modules()
        return
    for part in UNET:
        block = getattr(model, part, None)
        if block is not None:
            yield from block.named_modules(prefix=part)


def published_layers(model: Any) -> tuple[int, ...] | None:
    """The layers that the paper found for this architecture (SDXL, DeepFloyd IF, SD3-medium); none for others."""
    model, count = bare(model), len(text_layers(model))
    config: Any = model.config
    kind = config.get("addition_embed_type"), count
    if hasattr(model, "down_blocks"):
        return {("text_time", 70): (55, 56, 57), ("text", 22): (17,)}.get(kind)
    plain = config.get("qk_norm") is None and type(model).__name__ == "SD3Transformer2DModel"
    return (10,) if plain and count == 24 else None


def published_start(model: Any) -> int:
    """The first step in which the paper edits text with its published layers: of 50 steps (SD3: of 28)."""
    return 4 if bare(model).config.get("addition_embed_type") == "text_time" else 2


def chosen_layers(model: Any, layers: str | Sequence[int | str] = "auto") -> list[TextLayer]:
    """The layers of these numbers or names, each once, in order of execution.

    Args:
        model: a denoiser, or a pipeline.
        layers: numbers, names of modules, or ``auto`` for the published ones.

    Raises:
        ValueError: no layer, one that is not there, or ``auto`` where nothing was published.
    """
    known = text_layers(model)
    if layers == "auto":
        published = published_layers(model)
        if published is None:
            raise ValueError(
                f"no text layers are published for this {type(bare(model)).__name__} with {len(known)} of them: "
                "search with `dp.localize_text_layers(pipe, prompts)`, or give their numbers"
            )
        layers = published
    if isinstance(layers, str) or not layers:
        raise ValueError(f"`layers` must be 'auto' or a list of numbers or names, not empty; found {layers!r}")
    names = {layer.name: layer.index for layer in known}
    wanted = set()
    for layer in layers:
        if isinstance(layer, str) and layer in names:
            wanted.add(names[layer])
        elif isinstance(layer, int) and not isinstance(layer, bool) and 0 <= layer < len(known):
            wanted.add(layer)
        else:
            raise ValueError(
                f"there is no text layer {layer!r}{nearest(layer, names)}: they have the numbers 0 to "
                f"{len(known) - 1}, from {known[0].name} to {known[-1].name}"
            )
    return [known[index] for index in sorted(wanted)]


def projection_parameters(model: Any, layers: str | Sequence[int | str] = "auto") -> int:
    """Number of parameters that make the text's keys and values in these layers."""
    model = bare(model)
    names = [name for layer in chosen_layers(model, layers) for name in layer.projection_names]
    return sum(p.numel() for name in names for p in _own(model.get_submodule(name)))


def _own(module: nn.Module) -> Iterable[nn.Parameter]:
    base: Any = getattr(module, "base_layer", module)  # without the adapters on it
    return base.parameters()


def localized_lora(
    model: Any, layers: str | Sequence[int | str] = "auto", r: int = 4, targets: str = "qkvo", **settings: Any
) -> LoraConfig:
    """LoRA on text layers alone, as its authors train it: ``lora_alpha = r`` and a Gaussian start.

    Args:
        model: a denoiser, or a pipeline.
        layers: as for `chosen_layers`.
        r: rank.
        targets: ``qkvo`` (on joint attention those of the picture's side, as the authors do), ``kv`` of these, or
            ``text_kv``: what makes the text's keys and values, which is what was localized.
        settings: further ones of `peft.LoraConfig`.

    Raises:
        ValueError: unknown layers or targets.
    """
    chosen = chosen_layers(model, layers)
    parts = {"qkvo": QKVO, "kv": OWN, "text_kv": None}
    if targets not in parts:
        raise ValueError(f"`targets` must be one of {', '.join(parts)}; found {targets!r}{nearest(targets, parts)}")
    names = [f"{layer.name}.{part}" for layer in chosen for part in parts[targets] or layer.projections]
    known = dict(bare(model).named_modules())
    names = [name for name in names if name in known]  # the projection after a single block is its block's
    given = {"lora_alpha": r, "init_lora_weights": "gaussian", **settings}
    return LoraConfig(r=r, target_modules=names, **given)
