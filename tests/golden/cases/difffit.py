"""DiffFit: a linear layer, an MLP, blocks of DiT and of Stable Diffusion's UNet, a whole DiT, position tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from diffusion_peft import DiffFitConfig, position_table

from ..comparison import Tolerance
from ..harness import Results
from ..vectors import Vectors
from .attached import Attached, assign
from .dit_modules import DiT
from .timm_modules import with_tensors

# The file's name of a factor: its layer, and the sites that make it up, row block after row block.
Factors = Mapping[str, tuple[str, tuple[str, ...]]]
DIT: Factors = {
    "gamma1": ("attn.proj", ("attn_out",)),
    "gamma2": ("mlp.fc2", ("ffn_out",)),
    "attn.gamma1": ("attn.qkv", ("q", "k", "v")),
    "attn.gamma2": ("attn.proj", ("o",)),
}
UNET: Factors = {
    "gamma_attn1": ("attn1.to_out.0", ("attn_out",)),
    "gamma_attn2": ("attn2.to_out.0", ("cross_out",)),
    "gamma_ff": ("ff.net.2", ("ffn_out",)),
    **{
        f"attn{i}.processor.gamma_{name}": (f"attn{i}.{layer}", (site,))
        for i in (1, 2)
        for name, layer, site in (("q", "to_q", "q"), ("k", "to_k", "k"), ("v", "to_v", "v"), ("fnn", "to_out.0", "o"))
    },
}


def tolerance(name: str, dtype: torch.dtype) -> Tolerance:
    """1e-12, absolute for outputs and relative to the largest entry elsewhere."""
    return Tolerance(1e-12, absolute=name.startswith("output."))


class _Case:
    """A module with DiffFit that holds the file's tensors.

    Args:
        case: the file; its ``param.*`` beside factors and ``delta_bias`` are the base module's.
        base: the module.
        factors: where the file's factors stand.
        below: the path in ``base`` of the module that the file is about.
        fields: of the configuration.
    """

    def __init__(self, case: Vectors, base: nn.Module, factors: Factors, below: str = "", **fields: Any) -> None:
        given = case.below("param")
        self.case, self.below = case, below
        self.factors = {name: place for name, place in factors.items() if name in given}
        tensors = {below + n: t for n, t in given.items() if n not in self.factors and n != "delta_bias"}
        self.attached = Attached(with_tensors(base, tensors), DiffFitConfig(**fields))
        values: dict[nn.Parameter, Tensor] = {}
        for name in self.factors:
            parts = self._parts(name)
            values |= zip(parts, (given[name] - 1).split([len(part) for part in parts]), strict=True)
        if "delta_bias" in given:
            values[self._summand("delta_bias")] = given["delta_bias"]
        assign(values)

    def _parts(self, factor: str) -> list[nn.Parameter]:
        layer, sites = self.factors[factor]
        layer = f"{self.below}{layer}".removesuffix(".")
        return [self.attached.parameter(layer, f"delta_gamma.{site}") for site in sites]

    def _summand(self, name: str) -> nn.Parameter:
        module, _, leaf = f"{self.below}{name}".replace("delta_bias", "bias").rpartition(".")
        return self.attached.parameter(module, f"delta_{leaf}")

    def results(self, output: str, forward: Callable[..., Tensor]) -> Results:
        """Outputs and gradients with the adapter, outputs and folded tensors of the plain module."""
        inputs = {n: v.clone().requires_grad_(v.is_floating_point()) for n, v in self.case.below("input").items()}
        y = forward(self.attached.model, **inputs)
        (y * self.case["probe"]).sum().backward()
        found = {f"output.{output}": y}
        for name in self.case.below("grad"):
            if name.startswith("input."):
                leaves = [inputs[name.removeprefix("input.")]]
            else:
                leaves = self._parts(name) if name in self.factors else [self._summand(name)]
            found[f"grad.{name}"] = torch.cat([_gradient(leaf) for leaf in leaves])
        plain = self.attached.merged()
        folded = {f"merged.{n}": plain.get_parameter(self.below + n) for n in self.case.below("merged")}
        return {"DiffFitConfig": found, "merged": {f"output.{output}": forward(plain, **inputs), **folded}}


def _gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


def _modules(factors: Factors) -> dict[str, str]:
    """The sites' layers as the configuration takes them for a model of no known family."""
    layers: dict[str, list[str]] = {}
    for layer, (site,) in factors.values():
        layers.setdefault(site, []).append(re.escape(layer))
    return {site: "|".join(names) for site, names in layers.items()}


def linear(case: Vectors) -> Results:
    """A linear layer with a factor and a summand of its bias, whether it has one or not."""
    rows, columns = case["param.weight"].shape
    base = nn.Sequential(nn.Linear(columns, rows, bias="param.bias" in case))
    factors: Factors = {"gamma": ("", ("ffn_out",))}
    return _Case(case, base, factors, "0.", gamma_modules={"ffn_out": "0"}, add_bias=True).results("y", _call)


def mlp(case: Vectors) -> Results:
    """Two linear layers around an exact GELU, a factor after each."""
    (hidden, width), out = case["param.fc1.weight"].shape, len(case["param.fc2.weight"])
    base = _Mlp(width, hidden, out)
    factors: Factors = {"gamma1": ("fc1", ("ffn_hidden",)), "gamma2": ("fc2", ("ffn_out",))}
    return _Case(case, base, factors, gamma_modules=_modules(factors)).results("y", _call)


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


def _call(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


def dit_block(case: Vectors) -> Results:
    """One block of DiT; its factors are those the file has."""
    hidden, width = case["param.mlp.fc1.weight"].shape
    base = DiT(width, case.options["heads"], 1, hidden, classes=None, eps=case.options["norm_eps"])
    sites = [site for name, (_, own) in DIT.items() if f"param.{name}" in case for site in own]

    def forward(model: Any, x: Tensor, c: Tensor) -> Tensor:
        return model.get_submodule("base_model.model.blocks.0" if hasattr(model, "base_model") else "blocks.0")(x, c)

    return _Case(case, base, DIT, "blocks.0.", gamma_sites=sites, gamma_blocks="all").results("y", forward)


def dit_model(case: Vectors) -> Results:
    """A whole DiT with factors in some blocks."""
    options, (width, channels, patch, _) = case.options, case["param.x_embedder.proj.weight"].shape
    base = DiT(
        width,
        options["heads"],
        options["depth"],
        hidden=len(case["param.blocks.0.mlp.fc1.weight"]),
        classes=options["num_classes"],
        size=options["input"],
        patch=patch,
        channels=channels,
        out_channels=len(case["param.final_layer.linear.weight"]) // patch**2,
        frequencies=case["buffer.t_freq"].shape[1],
    )
    factors = {f"blocks.{i}.{n}": (f"blocks.{i}.{m}", s) for i in range(options["depth"]) for n, (m, s) in DIT.items()}
    sites = {site for name, (_, own) in factors.items() if f"param.{name}" in case for site in own}
    attached = _Case(case, base, factors, gamma_sites=sorted(sites), gamma_blocks=options["gamma_blocks"])
    trainable = sum(p.numel() for p in attached.attached.model.parameters() if p.requires_grad)
    if trainable != options.get("trainable", trainable):
        raise ValueError(f"{trainable} parameters are trained, the file's model has {options['trainable']}")
    return attached.results("eps_sigma", lambda model, x, t, y: model(x, case["buffer.t_freq"], y))


def unet_block(case: Vectors) -> Results:
    """A transformer block of Stable Diffusion's UNet."""
    width, heads = case.options["dim"], case.options["heads"]
    base = BasicTransformerBlock(
        width, heads, width // heads, cross_attention_dim=case.options["cross_dim"], norm_eps=case.options["norm_eps"]
    )
    given = {name: place for name, place in UNET.items() if f"param.{name}" in case}
    return _Case(case, base, UNET, gamma_modules=_modules(given)).results("y", lambda model, **inputs: model(**inputs))


def position_embedding(case: Vectors) -> Results:
    """The tables of a small grid, and of a large one with its coordinates."""
    width, small, large = (case.options[name] for name in ("dim", "small", "large"))
    tables = {"small": position_table(width, small), "large": position_table(width, large, small / large)}
    return {"position_table": {f"output.table.{name}": table for name, table in tables.items()}}
