"""What DiffFit trains at one module, and the layer around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import finalize

import torch
from torch import Tensor, nn

from diffusion_peft.methods.difffit.places import Place
from peft_kernels.calls import FORWARDS
from peft_kernels.frozen import frozen_forward, plain_convolution
from peft_kernels.layer import features_of
from peft_kernels.ops import least_factor, scaled_linear
from peft_kernels.reparam import Reparam, ReparamLayer


class Fit(Reparam):
    """Factors ``1 + δγ`` on a module's output rows, summands ``δ`` of its biases, norm weights or table.

    Args:
        base: the module.
        place: what is trained there.
        scalar: one number for each factor instead of one a row.
        gamma_init: γ at the start.
        dtype: of tensors that the module does not have and gets.
    """

    recompute = False

    def __init__(
        self,
        base: nn.Module,
        place: Place,
        scalar: bool = False,
        gamma_init: float = 1.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.keep_input, self.dtype, self.rows = place.keep_input, dtype, features_of(base)[1] or 0
        self.factors = {site: rows or (0, self.rows) for site, rows in place.factors.items()}
        sizes = {site: 1 if scalar else stop - start for site, (start, stop) in self.factors.items()}
        self.delta_gamma = nn.ParameterDict({s: torch.full((n,), gamma_init - 1.0) for s, n in sizes.items()})
        for name, shape in place.trained.items():
            self.register_parameter(_summand(name), nn.Parameter(torch.zeros(shape)))
        has_bias = getattr(base, "bias", None) is not None
        scaled = ("weight", *(("bias",) if has_bias else ())) if self.factors else ()
        self.tensors = tuple(dict.fromkeys((*scaled, *place.trained)))

    @property
    def source(self) -> Fit:
        """The adapter that holds the parameters."""
        return self

    def start_at_random(self) -> None:
        """Move every parameter away from its start."""
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def factor(self) -> Tensor | None:
        """γ for every row, ``None`` where there is none."""
        product = None
        for site, (start, stop) in self.factors.items():
            gamma = (1 + self.delta_gamma[site]).expand(stop - start)
            if stop - start < self.rows:
                one = gamma.new_ones(())
                gamma = torch.cat([one.expand(start), gamma, one.expand(self.rows - stop)])
            product = gamma if product is None else product * gamma
        return product

    def inside(self, name: str, tensor: Tensor | None) -> Tensor | None:
        """The tensor with its summand, before γ; an absent bias counts as 0, an absent weight as 1."""
        summand = self._parameters.get(_summand(name))
        if tensor is None and summand is not None:
            return (summand if name.endswith("bias") else 1 + summand).to(self.dtype)
        return tensor if summand is None or tensor is None else tensor + summand

    def effective(self, name: str, tensor: Tensor | None) -> Tensor:
        changed = self.inside(name, tensor)
        assert changed is not None
        factor = self.factor()
        if factor is None:
            return changed
        factor = least_factor(factor, changed.dtype).view(-1, *(1,) * (changed.ndim - 1))
        return (factor * changed).to(changed.dtype if tensor is None else factor.dtype)

    def delta(self, name: str, tensor: Tensor) -> Tensor:
        if not self.factors:
            return self.get_parameter(_summand(name))
        return self.effective(name, tensor) - tensor


class Tied(Reparam):
    """The adapter of a replica: the parameters are those of another module's adapter, whose gradients add up."""

    recompute = False

    def __init__(self, source: Reparam) -> None:
        super().__init__()
        self._source = (source,)  # in a tuple: no child, so that it is neither counted nor saved again
        self.tensors, self.additive = source.tensors, source.additive

    @property
    def source(self) -> Any:
        """The adapter that holds the parameters."""
        return self._source[0]

    def effective(self, name: str, tensor: Tensor | None) -> Tensor:
        return self.source.effective(name, tensor)

    def delta(self, name: str, tensor: Tensor) -> Tensor:
        return self.source.delta(name, tensor)


class FitLayer(ReparamLayer):
    """A module with DiffFit: no input of a linear or convolution is kept, and at most one tensor for its factors."""

    attention: tuple[nn.Module, ...] = ()  # whose output this is; in a tuple, since it is no child
    undo: Callable[[], None] | None = None  # what is taken back with the layer

    def when_removed(self, undo: Callable[[], None]) -> None:
        """Call ``undo`` when the layer is taken off, or dropped by who tells no layer (diffusers' `unload_lora`)."""
        self.undo = undo
        finalize(self, undo).atexit = False

    def detach(self) -> None:
        if self.undo is not None:
            self.undo()

    def adapted_forward(self, *args: Any, **kwargs: Any) -> Any:
        if any(map(is_fused, self.attention)):
            raise RuntimeError(
                "fuse_qkv_projections() made a copy of the projections that DiffFit adapts, which it does not reach: "
                "call unfuse_qkv_projections(), or merge the adapter before"
            )
        base: Any = self.base_layer
        if len(args) == 1 and not kwargs and not base._forward_hooks and not base._forward_pre_hooks:
            (x,) = args
            if type(base).forward is nn.Linear.forward:
                return self._linear(x)
            if plain_convolution(base, x):
                return self._convolution(x)
            if type(base).forward is nn.Embedding.forward and base.max_norm is None:
                return self._rows(x)
        return super().adapted_forward(*args, **kwargs)

    def _sources(self) -> list[tuple[Any, float]]:
        return [(adapter.source, scale) for adapter, scale in self.running]  # type: ignore[union-attr]

    def _factor_and_bias(self) -> tuple[Tensor | None, Tensor | None]:
        """γ and b of ``y = γ (W x + b)``."""
        bias, running = self.base_layer.bias, self._sources()
        if len(running) == 1 and running[0][1] == 1:
            (fit, _), dtype = running[0], self.base_layer.weight.dtype  # type: ignore[union-attr]
            inside = fit.inside("bias", bias)  # type: ignore[arg-type]
            return fit.factor(), None if inside is None else inside.to(dtype)
        gains = [scale * (factor - 1) for fit, scale in running if (factor := fit.factor()) is not None]
        bias = self.effective_tensor("bias")
        if not gains:
            return None, bias
        factor = 1 + torch.stack(gains).sum(0)
        return factor, None if bias is None else (bias / least_factor(factor, bias.dtype)).to(bias.dtype)

    def linear_parts(self) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
        """``W``, b and γ of ``y = γ (W x + b)``; ``None`` where this is no stock linear layer, or no adapter runs."""
        base: Any = self.base_layer
        if type(base).forward is not nn.Linear.forward or base.weight.requires_grad or not self.running:
            return None
        factor, bias = self._factor_and_bias()
        return base.weight, bias, factor

    def _linear(self, x: Tensor) -> Tensor:
        base: Any = self.base_layer
        factor, bias = self._factor_and_bias()
        if factor is None:
            return frozen_forward(base, x, bias=bias)
        return scaled_linear(x, base.weight, bias, factor, any(fit.keep_input for fit, _ in self._sources()))

    def _convolution(self, x: Tensor) -> Tensor:
        factor, bias = self._factor_and_bias()
        y = frozen_forward(self.base_layer, x, bias=bias)
        return y if factor is None else (y * factor.view(-1, *(1,) * (y.ndim - 2))).to(y.dtype)

    def _rows(self, x: Tensor) -> Tensor:
        base: Any = self.base_layer
        y = base(x)
        for fit, scale in self._sources():
            rows = FORWARDS[nn.Embedding.forward](base, x, weight=fit.delta("weight", base.weight), bias=None)
            y = (y + scale * rows).to(y.dtype)
        return y


def is_fused(attention: nn.Module) -> bool:
    """Whether diffusers runs a copy of the attention's projections in their place.

    Of its older attention class `unfuse_qkv_projections` changes the processor alone.
    """
    by_itself = hasattr(attention, "_supports_qkv_fusion")
    processor = type(getattr(attention, "processor", None)).__name__
    return bool(getattr(attention, "fused_projections", False)) and (by_itself or "Fused" in processor)


def _summand(name: str) -> str:
    return f"delta_{name.replace('.', '_')}"
