"""What an adapter changes beside tensors: the number of classes, and the coordinates of a position table."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion_peft.methods.difffit.adapter import Fit, FitLayer
from diffusion_peft.methods.difffit.places import Place
from peft_kernels.reparam import Reparam


class ClassTable(Reparam):
    """A new class table of ``classes`` rows, and as the last the null row where the old one has it.

    New rows are drawn from N(0, 0.02²); the null row is the old one.
    """

    additive = False
    recompute = False
    tensors = ("embedding_table.weight",)

    def __init__(self, base: Any, classes: int) -> None:
        super().__init__()
        old = base.embedding_table.weight.detach()
        table = torch.empty(classes, old.shape[1], device=old.device, dtype=old.dtype).normal_(std=0.02)
        self.classes, null = classes, old[base.num_classes :]
        self.setting = f"{classes} classes"
        self.table = nn.Parameter(torch.cat([table, null]))

    @property
    def source(self) -> ClassTable:
        """The adapter that holds the parameters."""
        return self

    def start_at_random(self) -> None:
        """Draw the table anew, far from a start."""
        nn.init.normal_(self.table)

    def effective(self, name: str, tensor: Tensor | None) -> Tensor:
        return self.table if tensor is None else self.table.to(tensor.dtype)

    def settings(self, base: Any) -> dict[str, Any]:
        """What the base module has to hold while the table is in force."""
        return {"num_classes": self.classes, "embedding_table.num_embeddings": len(self.table)}


class Positions(Fit):
    """A patch embedding whose position table has its coordinates multiplied by ``scale``."""

    def __init__(self, base: nn.Module, place: Place) -> None:
        super().__init__(base, place)
        assert place.positions is not None
        self.scale = place.positions
        self.setting = f"positions times {self.scale:g}"

    def settings(self, base: Any) -> dict[str, Any]:
        """What the base module has to hold: the table, and the factor with which it computes those of other sizes."""
        table = base.pos_embed
        size = round(table.shape[1] ** 0.5)
        step = self.scale * base.base_size / size / base.interpolation_scale
        new = position_table(table.shape[2], size, step).unsqueeze(0).to(table)
        return {"interpolation_scale": base.interpolation_scale / self.scale, "pos_embed": new}


def position_table(width: int, size: int, step: float = 1.0) -> Float[Tensor, "tokens width"]:
    """Sin-cos positions of a grid of ``size`` × ``size`` tokens whose coordinates are multiples of ``step``, float64.

    ``ω_j = 10000^(−j / (width/4))``, ``e(u) = [sin(u ω), cos(u ω)]``; token (row, col), row by row:
    ``concat(e(col), e(row))``. A grid of G2 for a model pretrained on one of G1 takes ``step = G1 / G2``.

    Raises:
        ValueError: a width that is no multiple of 4.
    """
    if width % 4:
        raise ValueError(f"a sin-cos table in two dimensions needs a width that 4 divides; found {width}")
    omega = 1.0 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angles = torch.outer(torch.arange(size, dtype=torch.float64) * step, omega)
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.cat([line.repeat(size, 1), line.repeat_interleave(size, 0)], dim=1)


def check_config(model: Any, positions: float | None) -> None:
    """Raise a ValueError where `write_config` could not say what a model's positions are."""
    if positions is not None and hasattr(model, "register_to_config") and "interpolation_scale" not in model.config:
        whole_size(model, positions)


def write_config(model: Any, classes: int | None, positions: float | None) -> None:
    """Let the configuration of a merged diffusers model say what its modules hold, so that it loads as it was saved.

    DiT's has no word for coordinates: it is configured for the size at which they are whole, and takes larger ones.
    A warning says so, since `DiTPipeline` draws at the configured size.
    """
    if not hasattr(model, "register_to_config"):
        return
    if classes is not None:
        model.register_to_config(num_embeds_ada_norm=classes)
    if positions is not None and "interpolation_scale" in model.config:
        model.register_to_config(interpolation_scale=model.pos_embed.interpolation_scale)
    elif positions is not None:
        before, size = model.config.sample_size, whole_size(model, positions)
        warnings.warn(
            f"the merged {type(model).__name__} is configured for latents of {size}, where its positions are whole, "
            f"and takes those of {before}; DiTPipeline draws these after `register_to_config(sample_size={before})`",
            stacklevel=2,
        )
        model.register_to_config(sample_size=size)


def whole_size(model: Any, positions: float) -> int:
    """The size of latents at which a DiT's scaled positions are whole.

    Raises:
        ValueError: there is none.
    """
    size, patch = model.config.sample_size * positions, model.config.patch_size
    if abs(size - round(size)) > 1e-6 or round(size) % patch:
        raise ValueError(
            f"positions times {positions:g} of a {type(model).__name__} for latents of {model.config.sample_size} are "
            f"whole at {size:g}, which is no multiple of its patches of {patch}: its configuration cannot say so, and "
            "the adapter cannot be merged"
        )
    return round(size)


class SettingsLayer(FitLayer):
    """A module that holds an adapter's settings while the adapter is in force, and its own otherwise.

    Settings and class tables are not interpolated: at any scale but 0 an adapter has its own, and two do not mix.
    """

    def __init__(self, base_layer: nn.Module, prefix: str) -> None:
        super().__init__(base_layer, prefix)
        self._before: dict[str, Any] = {}

    def adapted_forward(self, *args: Any, **kwargs: Any) -> Any:
        self._one_holder()
        return super().adapted_forward(*args, **kwargs)

    def refresh(self) -> None:
        """Put the settings in force into the base module."""
        for name, adapter in self.adapters.items():
            if isinstance(_source(adapter), ClassTable):
                self.scaling[name] = float(self.scaling[name] != 0)
        self._put(self._before)
        self._before = {}
        for holder in self._holders()[-1:]:
            settings = holder.settings(self.base_layer)
            self._before = {path: _get(self.base_layer, path) for path in settings}
            self._put(settings)

    def _holders(self) -> list[Any]:
        if self.merged_adapters:
            return [_source(self.adapters[name]) for name in self.merged_adapters if self.scaling[name]]
        return [source for source, scale in self._sources() if scale]

    def _one_holder(self) -> None:
        holders = self._holders()
        if any(holder.setting != holders[0].setting or isinstance(holder, ClassTable) for holder in holders[1:]):
            found = " and ".join(holder.setting for holder in holders)
            raise ValueError(f"two adapters with {found} cannot be in force at once: activate one of them")

    def _put(self, settings: dict[str, Any]) -> None:
        for path, value in settings.items():
            present = _get(self.base_layer, path)
            owner, _, leaf = path.rpartition(".")
            value = value.to(present) if isinstance(value, Tensor) else value
            setattr(self.base_layer.get_submodule(owner), leaf, value)

    # --- wherever what is in force changes -------------------------------------------------------------------------
    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        self.refresh()

    def enable_adapters(self, enabled: bool) -> None:
        super().enable_adapters(enabled)
        self.refresh()

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        self.refresh()

    def set_scale(self, adapter: str, scale: float) -> None:
        super().set_scale(adapter, scale)
        self.refresh()

    def scale_layer(self, scale: float) -> None:
        super().scale_layer(scale)
        self.refresh()

    def unscale_layer(self, scale: float | None = None) -> None:
        super().unscale_layer(scale)
        self.refresh()

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        super().merge(safe_merge, adapter_names)
        self._one_holder()
        self.refresh()

    def unmerge(self) -> None:
        super().unmerge()
        self.refresh()

    def detach(self) -> None:
        super().detach()
        if not self.merged_adapters:
            self._put(self._before)


def _source(adapter: Any) -> Any:
    return adapter.source


def _get(module: nn.Module, path: str) -> Any:
    owner, _, leaf = path.rpartition(".")
    return getattr(module.get_submodule(owner), leaf)
