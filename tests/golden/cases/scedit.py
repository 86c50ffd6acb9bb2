"""SCEdit: one tuner, conditions on skips of any form, and whole UNets with both."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from diffusion_peft import SceditConfig, condition_on
from peft_kernels.ops.pointwise_mlp import pointwise_mlp_reference

from ..comparison import Tolerance
from ..harness import Results
from ..vectors import Vectors
from .attached import assign, probed

PARTS = {"W1": "down.weight", "b1": "down.bias", "W2": "up.weight", "b2": "up.bias"}


def tolerance(name: str, dtype: torch.dtype) -> Tolerance:
    """1e-10 in float64, 1e-5 in float32, relative to the largest entry."""
    return Tolerance(1e-10 if dtype == torch.float64 else 1e-5)


class _Host(nn.Module):
    """A block that gives back what it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


def adapter(case: Vectors) -> Results:
    """One tuner, by the formula and on a block whose whole input is the skip."""
    x, shortcut, probe = (case[f"input.{name}"] for name in ("x", "shortcut", "probe"))
    x, shortcut = x.clone().requires_grad_(), shortcut.clone().requires_grad_()
    axis = 1 if case.options["layout"] == "NCHW" else -1
    given = {name: value.clone().requires_grad_() for name, value in case.below("param").items()}

    def formula(x: Tensor) -> Tensor:
        return pointwise_mlp_reference(x, *(given[name] for name in PARTS), axis=axis)

    config = SceditConfig(
        target_modules=["block"], skip_channels=[case.options["dim"]], down_ratio=case.options["down_ratio"]
    )
    unet = _Unet(_Host(), {"sc": config}, x.dtype)
    layer = unet.model.block
    tuner = layer.adapters["sc"]
    own = {name: tuner.get_parameter(path) for name, path in PARTS.items()}
    assign({own[name]: value.detach() for name, value in given.items()})

    def scaled(x: Tensor, scale: float) -> Tensor:
        layer.set_scale("sc", scale)
        return unet.model(x)

    ways: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, float], Tensor], dict[str, Tensor]]] = {
        "reference": (formula, lambda x, scale: x + scale * formula(x), given),
        "SceditConfig": (tuner, scaled, own),
    }
    return {way: _adapter_way(case, x, shortcut, probe, *how) for way, how in ways.items()}


def _adapter_way(
    case: Vectors,
    x: Tensor,
    shortcut: Tensor,
    probe: Tensor,
    residual: Callable[[Tensor], Tensor],
    scaled: Callable[[Tensor, float], Tensor],
    parameters: dict[str, Tensor],
) -> dict[str, Tensor]:
    y, both = scaled(x, 1.0), shortcut + residual(x)
    found = {"output.y": y, "output.residual_only": residual(x), "output.y_with_shortcut": both}
    for name in case.below("output"):
        if name.startswith("y_scale_"):
            found[f"output.{name}"] = scaled(x, float(name.removeprefix("y_scale_").replace("_", ".")))
    found |= probed(y, probe, {"x": x, **parameters})
    more = probed(both, probe, {"x": x, "shortcut": shortcut, **parameters})
    return {**found, **{name.replace("grad.", "grad_with_shortcut."): value for name, value in more.items()}}


class _Unet:
    """A model with SCEdit adapters by name, all of them active.

    Args:
        model: the base model.
        configs: by the name that the adapter gets: ``sc``, or ``0``, ``1``, ... for conditions.
        dtype: to compute in.
    """

    def __init__(self, model: nn.Module, configs: Mapping[str, SceditConfig], dtype: torch.dtype) -> None:
        import diffusion_peft as dp

        self.model: Any = model.eval()
        for name, config in configs.items():
            dp.add_adapter(self.model, config, name)
        dp.set_adapters(self.model, list(configs))
        self.model.to(dtype)
        self.layers = [m for m in self.model.modules() if hasattr(m, "adapter_layer_names")]
        self.layers.sort(key=lambda layer: hasattr(layer, "channels"))  # a condition encoder comes first
        self.index = list(range(len(self.layers)))

    def parameter(self, name: str, indices: list[int]) -> nn.Parameter:
        """The parameter with this name in the files."""
        parts = name.split(".")
        adapter = parts[1] if parts[0] == "cond" else "sc"
        kind, number, leaf = parts[-3:]
        if kind != "tuner":
            encoder = next(layer.adapters[adapter] for layer in self.layers if not hasattr(layer, "channels"))
            return encoder.get_parameter(f"{kind}.{number}.{leaf}")
        readers = [layer for layer in self.layers if hasattr(layer, "channels")]
        return readers[indices.index(int(number))].adapters[adapter].get_parameter(PARTS[leaf])


def _stem(channels: list[int]) -> dict[str, Any]:
    """The fields for a stem with these output channels."""
    ratio = max(channels[0] / 16, channels[2] / 32, channels[4] / 96) + 1e-9
    found = [int(width * ratio) for width in (16, 16, 32, 32, 96, 96)]
    if found != channels[:-1]:
        raise ValueError(f"no ratio makes a stem of {channels[:-1]}; the nearest is {found}")
    return {"pre_dim_ratio": ratio, "pre_out_channels": channels[-1]}


def csc(case: Vectors) -> Results:
    """Conditions (and SC-Tuners): on skips alone, or within a UNet where the file has one."""
    return unet(case) if "unet_config" in case.options else skips(case)


class _Skips(nn.Module):
    """A UNet of which nothing is left but its skips: decoder blocks give back the skip that they read."""

    def __init__(self, channels: list[int], halved: list[int]) -> None:
        super().__init__()
        self.conv_in = _Reader(0, channels[0])
        self.down_blocks, self.up_blocks = nn.ModuleList([_Block()]), nn.ModuleList([_Block()])
        for width, down in zip(channels[1:], halved[1:], strict=True):
            block: Any = self.down_blocks[-1]
            (block.downsamplers if down else block.resnets).append(_Reader(0, width))
            if down:
                self.down_blocks.append(_Block())
        hidden = channels[-1]
        for width in reversed(channels):
            self.up_blocks[0].resnets.append(_Reader(hidden + width, width))  # type: ignore[operator]
            hidden = width

    def forward(self, latents: Tensor, skips: list[Tensor]) -> list[Tensor]:
        self.conv_in(latents)
        edited = []
        for reader, skip in zip(self.up_blocks[0].resnets, reversed(skips), strict=True):  # type: ignore[arg-type]
            hidden = skip.new_zeros(len(skip), reader.in_channels - skip.shape[1], *skip.shape[2:])
            edited.append(reader(torch.cat([hidden, skip], 1))[:, -skip.shape[1] :])
        return edited


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.resnets, self.downsamplers = nn.ModuleList(), nn.ModuleList()


class _Reader(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x


def skips(case: Vectors) -> Results:
    """Skips of any widths."""
    options, count = case.options, len(case.below("input.skip"))
    inputs = [case[f"input.skip.{i}"].clone().requires_grad_() for i in range(count)]
    host = _Skips(options["skip_channels_encoder_order"], options["down_flags_encoder_order"])
    control = {**options, "scales": options["condition_scales"]}
    built, conditioned = _with_conditions(case, host, control, options["sc_down_ratio"], list(range(count)))
    if options["sc_down_ratio"] is not None:
        _set_scale(built, options["tuner_scale"])
    latents = inputs[0].new_zeros(len(inputs[0]), 1, *options["latent_hw"])
    with conditioned():
        edited = built.model(latents, inputs)
    loss = sum((edited[j] * case[f"input.probe.{j}"]).sum() for j in range(count))
    found = {f"output.edited.{j}": value for j, value in enumerate(edited)}
    for m in range(options["conditions"]):
        encoder = built.model.conv_in.adapters[str(m)]
        hint = case[f"input.hint.{m}"].to(inputs[0].dtype)
        found[f"output.cond.{m}.pre"] = encoder.stem(hint)
        found |= {f"output.cond.{m}.hint.{i}": value for i, value in enumerate(encoder(hint))}
    return {"SceditConfig": {**found, **_gradients(case, built, loss, {f"skip.{i}": x for i, x in enumerate(inputs)})}}


def _with_conditions(
    case: Vectors, host: nn.Module, control: dict[str, Any] | None, sc_ratio: float | None, indices: list[int]
) -> tuple[_Unet, Callable[[], AbstractContextManager[Any]]]:
    """The host with what the file has on it, and what a forward pass is to stand in."""
    configs: dict[str, SceditConfig] = {}
    if sc_ratio is not None:
        configs["sc"] = SceditConfig(down_ratio=sc_ratio, skip_indices=indices)
    hints = case.below("input.hint")
    for m in hints if control else ():
        assert control is not None
        more = {"pre_strides": control["pre_strides"]} if "pre_strides" in control else {}
        configs[m] = SceditConfig(
            control=True,
            down_ratio=control["down_ratio"],
            dense_kernel=control["dense_kernel"],
            pre_in_channels=hints[m].shape[1],
            skip_indices=indices,
            **_stem(control["pre_channels"]),
            **more,
        )
    dtype = next(value.dtype for name, value in case.tensors.items() if name.startswith("param."))
    built = _Unet(host, configs, dtype)
    assign({built.parameter(name, indices): value for name, value in case.below("param").items()})
    if not control:
        return built, nullcontext
    scales = {m: control["control_scale"] * scale for m, scale in zip(hints, control["scales"], strict=True)}
    return built, lambda: condition_on(built.model, {m: hint.to(dtype) for m, hint in hints.items()}, scales)


def _set_scale(built: _Unet, scale: float) -> None:
    for layer in built.layers:
        layer.set_scale("sc", scale)


def _gradients(case: Vectors, built: _Unet, loss: Any, more: dict[str, Tensor]) -> dict[str, Tensor]:
    indices = case.options.get("edited_decoder_indices") or list(range(len(built.layers)))
    wanted = {name: more[name] if name in more else built.parameter(name, indices) for name in case.below("grad")}
    return {
        f"grad.{name}": value
        for name, value in zip(wanted, torch.autograd.grad(loss, list(wanted.values())), strict=True)
    }


def unet(case: Vectors) -> Results:
    """A UNet of diffusers with SC-Tuners, conditions or both."""
    options = case.options
    host: Any = UNet2DConditionModel(**options["unet_config"])
    host.load_state_dict(case.below("unet"))
    if freeu := options.get("freeu"):
        host.enable_freeu(**freeu) if isinstance(freeu, dict) else host.enable_freeu(*freeu)
    inputs = [case[f"input.{name}"] for name in ("sample", "timestep", "encoder_hidden_states")]
    base = host.double().eval()(*inputs).sample
    indices = options["edited_decoder_indices"]
    built, conditioned = _with_conditions(case, host, options["control"], options["sc_down_ratio"], indices)

    def run(scale: float | None) -> Tensor:
        if scale is not None and options["sc_down_ratio"] is not None:
            _set_scale(built, scale)
        with conditioned():
            return built.model(*inputs).sample

    probe = case["input.probe"]
    y = run(options["sc_scale"])
    found = {"output.base": base, "output.y": y, **_gradients(case, built, (y * probe).sum(), {})}
    found["output.y_alt_scale"] = run(options["sc_scale_alt"])
    zero = {name: built.parameter(name, indices) for name in case.below("zero_init_grad")}
    if zero:
        assign({p: torch.zeros_like(p) for p in zero.values()})
        gradients = torch.autograd.grad((run(1.0) * probe).sum(), list(zero.values()))
        found |= {f"zero_init_grad.{name}": value for name, value in zip(zero, gradients, strict=True)}
    assert all(math.isfinite(value.sum().item()) for value in found.values())
    return {"SceditConfig": found}
