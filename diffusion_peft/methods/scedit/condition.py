"""What makes a SCEdit adapter controllable: the encoder of its condition, and how a picture reaches it.

With ``H`` the condition image and ``c₋₁ = stem(H)``, ``c_i = Conv_i(silu(c_{i-1}))`` has the form of the i-th skip, in
encoder order. It depends on neither latents nor timestep, so without gradients it is computed once a `condition_on`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import finalize

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_peft.methods.scedit.adapter import HINTS, SkipLayer
from peft_kernels.config import nearest
from peft_kernels.context import SideInputs
from peft_kernels.feature import Feature, FeatureLayer

_CONDITIONS = "scedit conditions"


class ConditionEncoder(Feature):
    """Stem and cascade of one condition.

    Args:
        skips: width of every skip and whether it is halved, in encoder order.
        in_channels: channels of the condition image.
        out_channels: of the stem.
        ratio: factor on the stem's inner widths 16, 32 and 96.
        strides: of the stem's seven convolutions; their product is the size of a latent in pixels.
        kernel: size of the cascade's convolutions, 1 or 3.
        zero: let the cascade start at 0, so that nothing is changed.
    """

    def __init__(
        self,
        skips: Sequence[tuple[int, bool]],
        in_channels: int = 3,
        out_channels: int = 256,
        ratio: float = 1.0,
        strides: Sequence[int] = (1, 1, 2, 1, 2, 1, 2),
        kernel: int = 3,
        zero: bool = True,
    ) -> None:
        super().__init__()
        widths = [in_channels, *(int(width * ratio) for width in (16, 16, 32, 32, 96, 96)), out_channels]
        self.pre = nn.ModuleList(
            nn.Conv2d(widths[k], widths[k + 1], 3, stride, padding=1) for k, stride in enumerate(strides)
        )
        self.dense = nn.ModuleList()
        for width, halved in skips:
            self.dense.append(nn.Conv2d(out_channels, width, kernel, 1 + halved, padding=kernel // 2))
            out_channels = width
        self.in_channels, self.stride = in_channels, 1
        for stride in strides:
            self.stride *= stride
        for parameter in self.dense.parameters() if zero else ():
            nn.init.zeros_(parameter)

    def stem(self, image: Tensor) -> Tensor:
        """``[B, in, s h, s w]`` to ``[B, out, h, w]``, SiLU between the convolutions and none behind the last."""
        x = self.pre[0](image)
        for conv in self.pre[1:]:
            x = conv(F.silu(x))
        return x

    def forward(self, image: Tensor) -> list[Tensor]:  # type: ignore[override]
        """The hints ``c_0 … c_{L-1}`` of the skips, in encoder order."""
        found = [self.stem(image)]
        for conv in self.dense:
            found.append(conv(F.silu(found[-1])))
        return found[1:]

    def why_no_merge(self) -> str:
        return "it encodes a picture that the model knows nothing of"


class Conditions:
    """The pictures of a `condition_on`, and the hints that are made of them.

    Args:
        images: ``[B, c, H, W]`` in 0 to 1 by adapter.
        scale: strength by adapter.
        halves: whether latents may come twice as many, as classifier-free guidance stacks them.
    """

    def __init__(self, images: Mapping[str, Tensor], scale: Mapping[str, float], halves: bool) -> None:
        self.images = {name: image.clone() for name, image in images.items()}  # nobody else's, so it never changes
        self.scale, self.halves = dict(scale), halves
        self._kept: dict[str, tuple[Any, list[Tensor]]] = {}

    def hints(self, name: str, encoder: ConditionEncoder, latents: Tensor) -> list[Tensor]:
        """The hints of one condition, made anew only where gradients are wanted or the encoder has changed."""
        image = self._checked(name, encoder, latents)
        autocast = torch.is_autocast_enabled(image.device.type)
        if not autocast:
            image = image.to(encoder.pre[0].weight.dtype)  # type: ignore[arg-type]
        if torch.is_grad_enabled():
            return encoder(image)
        version = (autocast, [(id(p), p._version) for p in encoder.parameters() if not p.is_inference()])
        if self._kept.get(name, (None,))[0] != version:
            self._kept[name] = version, encoder(image)
        return self._kept[name][1]

    def _checked(self, name: str, encoder: ConditionEncoder, latents: Tensor) -> Tensor:
        image = self.images[name]
        height, width = (side * encoder.stride for side in latents.shape[-2:])
        if tuple(image.shape[-2:]) != (height, width):
            found, wanted = f"{image.shape[-2]} × {image.shape[-1]}", f"{height} × {width}"
            raise ValueError(
                f"the condition image of {name!r} is {found} (height × width), expected {wanted}: {encoder.stride} "
                f"times the latents' {latents.shape[-2]} × {latents.shape[-1]}"
            )
        allowed = {len(image), 2 * len(image)} if self.halves else {len(image)}
        if len(image) != 1 and len(latents) not in allowed:
            raise ValueError(
                f"there are {len(image)} condition images of {name!r} for {len(latents)} latents: give one for all, or "
                "one each, repeated as the latents are (`guided=True` for the two halves of classifier-free guidance)"
            )
        return image.to(latents.device)


class ConditionLayer(FeatureLayer):
    """The UNet's first convolution, unchanged; beside it the condition encoders make the hints of a forward pass."""

    def __init__(self, base_layer: nn.Module, prefix: str) -> None:
        super().__init__(base_layer, prefix)
        self.side = SideInputs()
        self._handles: list[Any] = []

    def connect(self, model: nn.Module, layers: list[SkipLayer]) -> None:
        """Let ``layers`` read the hints of the forward pass of ``model`` that they take part in."""
        self.detach()
        for layer in layers:
            layer.side = self.side
        self._handles += self.side.attach(model, layers)
        finalize(self, _remove, self._handles).atexit = False  # diffusers' `unload_lora` tells no layer

    def detach(self) -> None:
        _remove(self._handles)

    def adapted_forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        hints = {}
        for name in self.active_adapters:
            if name in self.adapters and self.scaling[name]:
                conditions = self._conditions(name)
                if conditions.scale[name]:
                    encoder: Any = self.adapters[name]
                    hints[name] = conditions.scale[name], conditions.hints(name, encoder, x)
        self.side.put(HINTS, hints)
        return self.base_layer(x, *args, **kwargs)

    def _conditions(self, name: str) -> Conditions:
        try:
            conditions = self.side.get(_CONDITIONS)
        except LookupError:
            conditions = None
        if conditions is None or name not in conditions.images:
            raise ValueError(
                f"adapter {name!r} is steered by a picture and none is given: call the model within "
                f"`with dp.condition_on(model, {{{name!r}: image}})`, or set the adapter's weight to 0"
            )
        return conditions


def _remove(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()
    handles.clear()


@contextmanager
def condition_on(
    model: Any,
    images: Tensor | Mapping[str, Tensor],
    scale: float | Mapping[str, float] = 1.0,
    guided: bool = False,
) -> Iterator[Conditions]:
    """Let the controllable SCEdit adapters of ``model`` be steered by these pictures within the block.

    Every forward pass keeps what it was called with, also when gradient checkpointing computes it again later. Without
    gradients the pictures are encoded once for all passes of the block.

    Args:
        model: a UNet with controllable adapters, or what holds one (a `PeftModel`, a pipeline).
        images: ``[B, c, H, W]`` in 0 to 1 by adapter, or one where only one such adapter is active. One picture is for
            all samples; otherwise there is one for each.
        scale: strength of all, or by adapter, beside the adapters' weights; 0 leaves a condition out.
        guided: whether the latents may hold every sample twice, as classifier-free guidance stacks them.

    Yields:
        the `Conditions`, whose ``scale`` may be changed from step to step.

    Raises:
        ValueError: no such adapter, a picture that is none, or values outside of 0 to 1.
    """
    layer = _entry(getattr(model, "unet", model))
    named = dict(images) if isinstance(images, Mapping) else _only(layer, images)
    strengths = dict(scale) if isinstance(scale, Mapping) else dict.fromkeys(named, float(scale))
    for name in (*named, *strengths):
        if name not in layer.adapters:
            known = ", ".join(layer.adapters)
            raise ValueError(
                f"no controllable adapter is called {name!r}{nearest(name, layer.adapters)}; there are {known}"
            )
    for name, image in named.items():
        encoder: Any = layer.adapters[name]
        _check_image(name, image, encoder.in_channels)
    conditions = Conditions(named, {**dict.fromkeys(named, 1.0), **strengths}, guided)
    with layer.side.bind(**{_CONDITIONS: conditions}):
        yield conditions


def condition_sizes(model: nn.Module) -> dict[str, int]:
    """The controllable adapters that need a picture now, in their order of activation, and its channels."""
    layers = [module for module in model.modules() if isinstance(module, ConditionLayer)]
    found: dict[str, int] = {}
    for layer in layers:
        for name in layer.active_adapters if layer.running else ():
            if name in layer.adapters and layer.scaling[name]:
                encoder: Any = layer.adapters[name]
                found[name] = encoder.in_channels
    return found


def _entry(model: nn.Module) -> ConditionLayer:
    layers = [module for module in model.modules() if isinstance(module, ConditionLayer) and len(module.adapters)]
    if len(layers) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(layers)} sets of controllable adapters, expected one: attach one with "
            "`dp.add_adapter(model, dp.SceditConfig(control=True))`"
        )
    return layers[0]


def _only(layer: ConditionLayer, image: Tensor) -> dict[str, Tensor]:
    active = [name for name in layer.active_adapters if name in layer.adapters]
    if len(active) != 1:
        raise ValueError(
            f"{len(active)} controllable adapters are active ({', '.join(active) or 'none'}): give the condition "
            "images by name, as {'name': image}"
        )
    return {active[0]: image}


def _check_image(name: str, image: Any, channels: int) -> None:
    if not isinstance(image, Tensor) or image.ndim != 4 or not image.is_floating_point():
        found = f"{tuple(image.shape)} {image.dtype}" if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(f"the condition image of {name!r} must be a float tensor [B, c, H, W]; found {found}")
    if image.shape[1] != channels:
        raise ValueError(f"the condition image of {name!r} has {image.shape[1]} channels, expected {channels}")
    low, high = (value.item() for value in image.detach().aminmax())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"the condition image of {name!r} must lie in 0 to 1; found {low:.3g} to {high:.3g}")
