"""SNELLA: SNELL with a mixed kernel, and a budget of entries that all layers compete for.

Shen, Sun, Wang, Huang: "Kernelized Sparse Fine-Tuning with Bi-level Parameter Competition for Vision Models", 2025
(arXiv 2510.24037). Within a layer entries compete by magnitude, as in SNELL; the softmax runs over the out axis:

    M[i, j] = Σ_p c_p ‖B_p[i] − A_p[j]‖,   delta = M + α softmax_i(M / γ) + β,   S = delta ⊙ |delta| ⊙ [|delta| > t_l]

with t_l the quantile s_l of the layer's magnitudes. Layers compete by importance for a budget of surviving entries that
shrinks while training (`SnellaAllocator`); s_l is part of the adapter. Unlike SNELL's, the gate stays at s_l = 0.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, ClassVar

from peft_kernels.allocation import METRICS, BudgetSchedule
from peft_kernels.config import choices, require
from peft_kernels.ops.kernel_delta import KERNEL_SCALARS
from peft_kernels.registry import register
from vision_peft.methods.kernelised import KernelConfig, KernelTuner, Points
from vision_peft.methods.snella_allocator import SnellaAllocator, SnellaPoints

GATES = ("magnitude", "soft", "hard", "none")
UNITS = ("epoch", "step")


class SnellaTuner(KernelTuner):
    """Attaches SNELLA and divides its budget."""

    points_cls: ClassVar[type[Points]] = SnellaPoints
    allocator: SnellaAllocator | None = None

    def begin_allocation(self, steps: int | None = None, steps_per_epoch: int | None = None) -> SnellaAllocator | None:
        """Tell the length of the run, before its first step; gives the allocator, ``None`` for a dense adapter.

        Raises:
            ValueError: several adapters are active, or the schedule does not suit the run.
        """
        if len(self.active_adapters) != 1:
            raise ValueError(f"one adapter's budget is divided at a time; active are {', '.join(self.active_adapters)}")
        name = self.active_adapters[0]
        dense = self.peft_config[name].gate == "none"  # type: ignore[attr-defined]
        self.allocator = None if dense else SnellaAllocator(self.model, steps, steps_per_epoch, name)
        return self.allocator

    def update_and_allocate(self, step: int) -> dict[str, Any] | None:
        """`SnellaAllocator.update_and_allocate` of the active adapter."""
        allocator = self.allocator or self.begin_allocation()
        return None if allocator is None else allocator.update_and_allocate(step)


@register(
    "snella",
    tuner=SnellaTuner,
    prefix="snella_",
    family="vision",
    summary="SNELL with a mixed kernel and a budget of entries that layers compete for; folds away",
    paper="Shen et al., 2025",
)
@dataclass
class SnellaConfig(KernelConfig):
    """SNELLA: ``y = x (W0 + S)ᵀ + b0``, ``S`` a gated mix of distances and their softmax, sparsity by layer.

    ViT-B/16, r = 32: 5,308,632 parameters without head and class token, Σ (r (m + n) + 3). By default also trains the
    classifier and, in a ViT, the class token.

    Args:
        r: total rank over all parts, a multiple of ``num_parts``.
        num_parts: number P of alternating distances (``mix`` and ``piecewise_linear``; the others have one part).
        kernel: ``mix`` or one of SNELL's.
        kernel_p: Minkowski order of the distance; 2 for ``mix``.
        scale: factor c0 of the distances.
        gate: ``magnitude``, ``soft``, ``hard`` or ``none`` (dense: ``mixk`` in the authors' code, without a budget).
        initial_sparsity: share of all entries that the gates drop at the start, in [0, 1).
        target_sparsity: that share at the end; the authors search it per task.
        total: length of the schedule in ``unit``; the run's where not given.
        initial_warmup: first rounds that keep the initial sparsity.
        final_warmup: last rounds that keep the target sparsity.
        interval: rounds between two reallocations.
        unit: what a round is: ``epoch`` (authors' code) or ``step``.
        power: exponent with which the budget falls.
        beta1: smoothing of the importance.
        beta2: smoothing of its uncertainty.
        metric: ``sensitivity`` (|X ∂X|) or ``magnitude`` (|X|).
        size_weighted: multiply a layer's score by its number of entries.
        min_keep: entries that every layer keeps, because one without any can never win some back; one row of its
            weight where not given, 0 as in the authors' code.
        alpha0: α at the start.
        gamma0: γ at the start, not 0; in the forward pass never nearer to 0 than 1e-4.
        beta0: β at the start.
        dropout: dropout on the branch's input while training (linear layers, not before the attention's output).
        drop_path: stochastic depth of each branch while training (linear layers).
        fused_splits: row blocks of fused modules by name, each with points and sparsity of its own.
        init: ``official`` or ``identity`` (starts exactly at the base model).
        rank_pattern: ranks of single layers, by name suffix.
        sparsity_pattern: initial sparsities of single layers, by name suffix.
    """

    r: int = field(default=32, metadata={"help": "Total rank over all parts."})
    kernel: str = field(default="mix", metadata={"help": f"Kernel: {', '.join(KERNEL_SCALARS)}."})
    gate: str = field(default="magnitude", metadata={"help": f"Gate: {', '.join(GATES)}."})
    initial_sparsity: float = field(default=0.01, metadata={"help": "Share of entries dropped first, in [0, 1)."})
    target_sparsity: float = field(default=0.5, metadata={"help": "Share of entries dropped at the end, in [0, 1]."})
    total: int | None = field(default=None, metadata={"help": "Length of the schedule in `unit`; the run's if null."})
    initial_warmup: int = field(default=0, metadata={"help": "First rounds that keep the initial sparsity."})
    final_warmup: int = field(default=0, metadata={"help": "Last rounds that keep the target sparsity."})
    interval: int = field(default=1, metadata={"help": "Rounds between two reallocations."})
    unit: str = field(default="epoch", metadata={"help": f"What a round is: {', '.join(UNITS)}."})
    power: float = field(default=3.0, metadata={"help": "Exponent with which the budget falls."})
    beta1: float = field(default=0.85, metadata={"help": "Smoothing of the importance, in (0, 1)."})
    beta2: float = field(default=0.85, metadata={"help": "Smoothing of its uncertainty, in (0, 1)."})
    metric: str = field(default="sensitivity", metadata={"help": f"Importance: {', '.join(METRICS)}."})
    size_weighted: bool = field(default=False, metadata={"help": "Multiply a layer's score by its entries."})
    min_keep: int | None = field(default=None, metadata={"help": "Entries every layer keeps; one row if null."})
    alpha0: float = field(default=1.0, metadata={"help": "Factor of the softmax at the start."})
    gamma0: float = field(default=1.0, metadata={"help": "Temperature of the softmax at the start, not 0."})
    beta0: float = field(default=0.0, metadata={"help": "Shift of all entries at the start."})

    @property
    def first_sparsity(self) -> float:
        return self.initial_sparsity

    @property
    def first_scalars(self) -> tuple[float, ...]:
        return (self.alpha0, self.gamma0, self.beta0) if self.kernel == "mix" else super().first_scalars

    def schedule(self, total: int) -> BudgetSchedule:
        """The schedule over ``total`` rounds.

        Raises:
            ValueError: the warm-ups leave no round between them.
        """
        return BudgetSchedule(
            self.initial_sparsity, self.target_sparsity, total,
            self.initial_warmup, self.final_warmup, self.interval, self.power,
        )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        choices(self, "kernel", KERNEL_SCALARS)
        choices(self, "gate", GATES)
        choices(self, "unit", UNITS)
        choices(self, "metric", METRICS)
        require(self.kernel != "mix" or self.kernel_p == 2, self, "kernel_p", "2 for the kernel mix")
        require(0 <= self.initial_sparsity < 1, self, "initial_sparsity", "in [0, 1)")
        require(0 <= self.target_sparsity <= 1, self, "target_sparsity", "in [0, 1]")
        for name in ("initial_warmup", "final_warmup"):
            require(getattr(self, name) >= 0, self, name, "at least 0")
        warmups = self.initial_warmup + self.final_warmup
        require(self.total is None or self.total > warmups, self, "total", f"more than both warm-ups ({warmups})")
        require(self.interval >= 1, self, "interval", "at least 1")
        require(self.power > 0, self, "power", "above 0")
        for name in ("beta1", "beta2"):
            require(0 < getattr(self, name) < 1, self, name, "in (0, 1)")
        require(self.min_keep is None or self.min_keep >= 0, self, "min_keep", "at least 0, or null for one row")
        require(self.gamma0 != 0, self, "gamma0", "a number other than 0")
        if self.target_sparsity < self.initial_sparsity:
            warnings.warn("target_sparsity is below initial_sparsity: the budget will grow", stacklevel=3)
