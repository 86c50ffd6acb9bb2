"""What SNELL and SNELLA share: two low-rank point sets a matrix, merged by a kernel into a delta with a gate.

    delta[i, j] = κ(B[i], A[j]),   S = delta ⊙ g(delta),   y = x (W0 + S)ᵀ + b0

Delta and gate are recomputed in the backward pass.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peft_kernels.config import MethodConfig, choices, require
from peft_kernels.frozen import plain_convolution
from peft_kernels.ops import DeltaSlice, DeltaSpec, delta_sparse, gated_conv, gated_linear, keep_mask, redrawn_points
from peft_kernels.ops.kernel_delta import DISTANCE_KERNELS, KERNEL_SCALARS
from peft_kernels.reparam import MatrixParts, ReparamLayer
from peft_kernels.slices import Rows
from peft_kernels.targets import find_backbone, head_names
from peft_kernels.tuner import AdapterTuner

# Scalars (alpha, beta, gamma) at the start, chosen so that the delta starts near 0; the paper gives none.
_START = {"sigmoid": (1.0, 1.0, -0.5), "rbf": (1.0, 1.0, -1.0)}


class Points(nn.Module):
    """The point sets of one matrix: ``A [P, in, r / P]``, ``B [P, out, r / P]``, for some kernels three scalars.

    Called with the base rows (shape ``[out, ...]``, of which only the shape counts) it returns ``S`` in that shape.

    Attributes:
        key: name of the module, and of the row block, in the base model.
        share: the share of entries that the gate drops.
    """

    def __init__(self, rows: int, columns: int, start: int, config: KernelConfig, key: str) -> None:
        super().__init__()
        self.row, self.shape = start, (rows, columns)
        self.config, self.key, self.seed = config, key, zlib.crc32(key.encode())
        r = config.pattern(config.rank_pattern, key, config.r)
        self.share: float = config.pattern(config.sparsity_pattern, key, config.first_sparsity)
        self.width = r // config.parts
        self.A = nn.Parameter(torch.empty(config.parts, columns, self.width))
        self.B = nn.Parameter(torch.empty(config.parts, rows, self.width))
        scalars = KERNEL_SCALARS[config.kernel]
        self.scalars = nn.Parameter(torch.empty(len(scalars))) if scalars else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Kaiming-uniform with a = √5 on the 3-d tensors: ``A ~ U(±1/√(in r/P))``, ``B ~ U(±1/√(out r/P))``."""
        if self.scalars is not None:
            self.scalars.copy_(torch.tensor(self.config.first_scalars))
        for points in (self.A, self.B):
            nn.init.kaiming_uniform_(points, a=math.sqrt(5))
            if not self.config.init_weights:
                points.mul_(0.5 * math.sqrt(points.shape[1] * points.shape[2]))
        if self.config.init == "identity" and self.config.init_weights and not self.A.is_meta:
            for points, start in zip((self.A, self.B), self.start_points(), strict=True):
                points.copy_(start)

    def start_points(self) -> tuple[Tensor, Tensor]:
        """The points that ``init="identity"`` starts from, made again from the module's name."""
        return redrawn_points(self.A, self.B, self.seed)

    def slices(self, scale: float = 1.0, row: int | None = None) -> list[DeltaSlice]:
        """The delta, and for an identity start the start's delta with a negative sign, as the operation takes them."""
        config = self.config
        spec = DeltaSpec(
            sparsity=self.share,
            gate=config.gate,
            kernel=config.kernel,
            p=config.kernel_p,
            coeff=tuple(config.scale * (-1) ** part for part in range(config.parts)),
            scale=scale,
            start=self.row if row is None else row,
        )
        made = [DeltaSlice(self.A, self.B, spec, self.scalars)]
        if config.init == "identity" and config.init_weights:
            A, B = self.start_points()
            scalars = None if self.scalars is None else self.scalars.new_tensor(config.first_scalars)
            made.append(DeltaSlice(A, B, replace(spec, scale=-scale), scalars))
        return made

    def forward(self, rows: Tensor) -> Tensor:
        return delta_sparse(self.slices(row=0), *self.shape).view(rows.shape)


class KernelAdapter(MatrixParts):
    """The point sets of one layer and its branch regularisers."""

    def __init__(self, parts: dict[str, tuple[str, int, int, nn.Module]], dropout: float, drop_path: float) -> None:
        super().__init__(parts)
        self.dropout, self.drop_path = dropout, drop_path

    def slices(self, scale: float) -> list[DeltaSlice]:
        points = [self.get_submodule(key) for key in self.places]
        return [made for part in points if isinstance(part, Points) for made in part.slices(scale)]

    def masks(self, x: Tensor, slices: list[DeltaSlice]) -> dict[str, Any]:
        """Dropout of the branch input, one mask for all slices, and stochastic depth of each slice's output."""
        drop = keep = None
        gain = 1.0
        if self.training and self.dropout:
            drop, gain = keep_mask(x.shape, self.dropout, x.device)
        if self.training and self.drop_path:
            each = len(slices) // len(self.places)
            keep, path_gain = keep_mask((len(self.places), x.shape[0]), self.drop_path, x.device)
            keep = keep.repeat_interleave(each, 0)
            gain *= path_gain
        return {"drop": drop, "keep": keep, "gain": gain}


class KernelLayer(ReparamLayer):
    """A layer whose weight is ``W0 + S``; linear layers use the fused operation, all slices in one product."""

    def adapted_forward(self, *args: Any, **kwargs: Any) -> Any:
        base: Any = self.base_layer
        adapters = [(a, scale) for a, scale in self.running if isinstance(a, KernelAdapter)]
        x = args[0]
        if plain_convolution(base, x):
            slices = [s for a, scale in adapters for s in a.slices(scale)]
            return gated_conv(x, base.weight, base.bias, slices, base.stride, base.padding, base.dilation, base.groups)
        if type(base).forward is not nn.Linear.forward:
            return super().adapted_forward(*args, **kwargs)
        if not any(a.training and (a.dropout or a.drop_path) for a, _ in adapters):
            return gated_linear(x, base.weight, base.bias, [s for a, scale in adapters for s in a.slices(scale)])
        y: Tensor | None = None
        for adapter, scale in adapters:
            slices = adapter.slices(scale)
            first = y is None
            part = gated_linear(
                x,
                base.weight if first else None,
                base.bias if first else None,
                slices,
                **adapter.masks(x, slices),
                out_features=base.out_features,
            )
            y = part if y is None else y + part
        assert y is not None
        return y


class KernelTuner(AdapterTuner):
    """Attaches point sets to matrices."""

    layer_cls = KernelLayer
    points_cls: ClassVar[type[Points]] = Points
    target_kind = "linear"
    takes_rows = True

    def default_modules_to_save(self, config: KernelConfig, model: nn.Module) -> list[str]:
        """The head, in ConvNeXt with its norm, and the class token, as in the authors' code."""
        names = head_names(model)
        found = find_backbone(model)
        if found and found[2].block.startswith("stages"):
            names += [name.replace("head.fc", "head.norm") for name in names if name.endswith("head.fc")]
        path = f"{found[0]}." if found and found[0] else ""
        if (
            found
            and type(found[1]).__name__ == "VisionTransformer"
            and found[1]._parameters.get("cls_token") is not None
        ):
            names.append(f"{path}cls_token")
        return names

    def check_target(self, config: KernelConfig, key: str, base: nn.Module) -> None:
        name = type(config).__name__
        if isinstance(base, nn.modules.conv._ConvNd) and base.groups == base.in_channels > 1:
            raise ValueError(
                f"{name} merges points of input and output features; the depthwise {type(base).__name__} {key!r} has "
                "one input feature per output: leave it out of `target_modules`"
            )
        if not _matrices(base):
            raise ValueError(f"{name} adapts matrices; {key!r} ({type(base).__name__}) has none")

    def make_adapter(self, config: KernelConfig, key: str, base: nn.Module, rows: Rows | None) -> KernelAdapter:
        parts: dict[str, tuple[str, int, int, nn.Module]] = {}
        for name, tensor in _matrices(base).items():
            whole = {"": (0, tensor.shape[0])}
            fused = rows if name in ("weight", "in_proj_weight") else None
            for block, (start, stop) in (fused or whole).items():
                label = "_".join(part for part in (name.replace(".", "_"), block) if part)
                columns = tensor[0].numel()
                points = self.points_cls(stop - start, columns, start, config, f"{key}.{block}" if block else key)
                parts[label] = (name, start, stop, points)
        # The authors drop the branch's input everywhere but before the attention's output projection.
        dropout = 0.0 if key.endswith("attn.proj") else config.dropout
        return KernelAdapter(parts, dropout, config.drop_path)


def _matrices(module: nn.Module) -> dict[str, Tensor]:
    recurse = isinstance(module, nn.MultiheadAttention)
    return {n: p for n, p in module.named_parameters(recurse=recurse) if p.ndim >= 2 and n.endswith("weight")}


@dataclass
class KernelConfig(MethodConfig):
    """The fields that SNELL and SNELLA share; each documents them."""

    r: int = 8
    kernel: str = "piecewise_linear"
    gate: str = "magnitude"
    num_parts: int = field(default=2, metadata={"help": "Number of alternating distances."})
    kernel_p: float = field(default=2.0, metadata={"help": "Minkowski order of the distance."})
    scale: float = field(default=0.1, metadata={"help": "Factor of the distances."})
    dropout: float = field(default=0.1, metadata={"help": "Dropout on the branch's input."})
    drop_path: float = field(default=0.1, metadata={"help": "Stochastic depth of the branch."})
    fused_splits: dict[str, int] = field(
        default_factory=lambda: {"qkv": 3}, metadata={"help": "Row blocks of fused modules, by name."}
    )
    init: str = field(default="official", metadata={"help": "Start: official or identity."})
    rank_pattern: dict[str, int] = field(default_factory=dict, metadata={"help": "Ranks of single layers."})
    sparsity_pattern: dict[str, float] = field(default_factory=dict, metadata={"help": "Sparsities of single layers."})

    @property
    def parts(self) -> int:
        """Number of point sets of the kernel."""
        return self.num_parts if self.kernel in DISTANCE_KERNELS else 1

    @property
    def first_sparsity(self) -> float:
        """The sparsity at the start."""
        raise NotImplementedError

    @property
    def first_scalars(self) -> tuple[float, ...]:
        """The kernel's scalars at the start."""
        return _START[self.kernel]

    @staticmethod
    def pattern(values: dict[str, Any], key: str, default: Any) -> Any:
        """The value of the longest name in ``values`` that ``key`` ends with."""
        found = [name for name in values if key == name or key.endswith(f".{name}")]
        return values[max(found, key=len)] if found else default

    def __post_init__(self) -> None:
        super().__post_init__()
        choices(self, "init", ("official", "identity"))
        require(isinstance(self.num_parts, int) and self.num_parts >= 1, self, "num_parts", "an integer >= 1")
        for r in (self.r, *self.rank_pattern.values()):
            require(
                isinstance(r, int) and r > 0 and r % self.parts == 0, self, "r" if r == self.r else "rank_pattern",
                f"a positive multiple of num_parts ({self.parts})",
            )  # fmt: skip
        for sparsity in self.sparsity_pattern.values():
            require(0 <= sparsity <= 1, self, "sparsity_pattern", "in [0, 1]")
        require(self.kernel_p > 0, self, "kernel_p", "a number > 0")
        require(math.isfinite(self.scale), self, "scale", "a finite number")
        require(0 <= self.dropout < 1, self, "dropout", "in [0, 1)")
        require(0 <= self.drop_path < 1, self, "drop_path", "in [0, 1)")
