"""Attaches SaRA: selects in the model's weights, or as a saved adapter's plan says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from diffusion_peft.methods.sara import selection
from diffusion_peft.methods.sara.allocator import SaraAllocator
from diffusion_peft.methods.sara.layer import SaraAdapter, SaraLayer
from peft_kernels.budget import Plan
from peft_kernels.entries import Entries
from peft_kernels.slices import Rows
from peft_kernels.targets import compress
from peft_kernels.tuner import AdapterTuner

if TYPE_CHECKING:
    from diffusion_peft.methods.sara.config import SaraConfig


class SaraTuner(AdapterTuner):
    """Attaches SaRA."""

    layer_cls = SaraLayer
    allocator: SaraAllocator | None = None

    def default_targets(self, config: SaraConfig, model: nn.Module) -> str:
        names = list(selection.owners(config, model))
        if not names:
            raise ValueError(f"SaRA finds no tensors to train in {type(model).__name__}: give `target_modules`")
        return compress(model, names)

    def decided_fields(self, config: SaraConfig, model: nn.Module) -> dict[str, Any]:
        """The plan that the weights give, and what the file of an adapter recognises them by."""
        tensors = self._tensors(config)
        if config.plan is not None:
            Plan.read(config.plan).check({name: tensor.numel() for name, tensor in tensors.items()})
            return {}
        if not tensors:
            return {}  # PEFT has an error for targets that match nothing
        chosen = selection.select(config, tensors)
        self._places, self._values = chosen.places, chosen.values
        return {
            "plan": Plan(entries={name: len(found) for name, found in chosen.places.items()}).as_dict(),
            "origin": {name: selection.fingerprint(values) for name, values in self._values.items()},
            "threshold": chosen.threshold,
        }

    def _tensors(self, config: SaraConfig) -> dict[str, Tensor]:
        """The targets' tensors, tied ones once; their other names are kept in mind."""
        found: dict[str, Tensor] = {}
        names: dict[int, str] = {}
        self._places: dict[str, Tensor] = {}
        self._values: dict[str, Tensor] = {}
        self._made: dict[str, Entries] = {}
        self._first: dict[str, str] = {}
        for key, module in self._targets(config):
            if isinstance(module, BaseTunerLayer) and module.merged:
                raise ValueError(f"an adapter is merged into {key!r}: SaRA selects in the base weights; unmerge first")
            base = module.base_layer if isinstance(module, SaraLayer) else module
            for name, tensor in selection.eligible(config, base).items():
                first = names.setdefault(id(tensor), f"{key}.{name}")
                self._first[f"{key}.{name}"] = first
                found.setdefault(first, tensor)
        return found

    def check_target(self, config: SaraConfig, key: str, base: nn.Module) -> None:
        if not selection.eligible(config, base):
            raise ValueError(
                f"{key!r} ({type(base).__name__}) has no parameter to train of the kinds SaraConfig asks for"
            )

    def _create_and_replace(
        self, peft_config: Any, adapter_name: str, target: nn.Module, *args: Any, current_key: str, **kwargs: Any
    ) -> None:
        base = target.base_layer if isinstance(target, SaraLayer) else target
        if self._planned(peft_config, current_key, base):  # of the targets, those that have entries
            super()._create_and_replace(peft_config, adapter_name, target, *args, current_key=current_key, **kwargs)

    def _planned(self, config: SaraConfig, key: str, base: nn.Module) -> dict[str, tuple[str, int]]:
        """The tensors of a module that have entries: by name, the name they go by in the plan, and how many."""
        counts = (config.plan or {}).get("entries", {})  # read before, once
        first = {name: self._first[f"{key}.{name}"] for name in selection.eligible(config, base)}
        return {name: (known, counts[known]) for name, known in first.items() if known in counts}

    def make_adapter(self, config: SaraConfig, key: str, base: nn.Module, rows: Rows | None) -> SaraAdapter:
        tensors = selection.eligible(config, base)
        parts = {}
        for name, (known, count) in self._planned(config, key, base).items():
            if known not in self._made:
                values = _start(self._values.get(known), config.init_weights)
                size = tensors[name].numel()
                self._made[known] = Entries(count, size, self._places.get(known), replace=True, values=values)
            parts[name] = self._made[known]
        return SaraAdapter(config, key, parts, recompute=any(tensors[name].ndim > 1 for name in parts))

    def inject_adapter(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().inject_adapter(*args, **kwargs)
        finally:
            self._places, self._values, self._made, self._first = {}, {}, {}, {}

    # --- while training --------------------------------------------------------------------------------------------
    def begin_allocation(
        self, steps: int | None = None, steps_per_epoch: int | None = None, optimizer: Any = None
    ) -> SaraAllocator:
        """Tell the length of the run, and its optimiser, before the first step; see `SaraAllocator`.

        Raises:
            ValueError: several adapters are active, or `SaraConfig.reselect_step` does not suit the run.
        """
        if len(self.active_adapters) != 1:
            raise ValueError(f"one adapter is trained at a time; active are {', '.join(self.active_adapters)}")
        self.allocator = SaraAllocator(self.model, steps, optimizer, self.active_adapters[0])
        return self.allocator

    def update_and_allocate(self, step: int) -> dict[str, Any] | None:
        """`SaraAllocator.update_and_allocate` of the active adapter."""
        return (self.allocator or self.begin_allocation()).update_and_allocate(step)


def _start(values: Tensor | None, init_weights: bool) -> Tensor | None:
    """The selected values to begin with, in float32 at least; ``None`` where a file is yet to be read."""
    if values is None:
        return None
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    return values if init_weights else values + torch.randn_like(values) * (0.1 + values.abs())
