"""Attaches what a plan says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn

from peft_kernels.budget import Plan
from peft_kernels.entries import Entries
from peft_kernels.slices import Rows
from peft_kernels.targets import compress
from peft_kernels.tuner import AdapterTuner
from vision_peft.methods.spt.adapter import Bottleneck, LowRank, SptAdapter, SptLayer
from vision_peft.methods.spt.places import Place, always_trained, check_rank, module_places, places

if TYPE_CHECKING:
    from vision_peft.methods.spt.config import SptConfig


class SptTuner(AdapterTuner):
    """Attaches SPT."""

    layer_cls = SptLayer
    takes_rows = True

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict) -> Any:
        check_plan(peft_config, self.model)
        return super()._prepare_adapter_config(peft_config, model_config)

    def default_targets(self, config: SptConfig, model: nn.Module) -> str:
        plan, known = Plan.read(config.plan or {}), places(model, config)
        named = {*plan.ranks, *plan.entries, *plan.full}
        modules = dict.fromkeys(place.module for place in known.values() if place.name in named and place.module)
        return compress(model, [name for name, _ in model.named_modules() if name in modules]) or DUMMY_TARGET_MODULES

    def extra_tensors(self, config: SptConfig, model: nn.Module) -> list[str]:
        """The class token, and raw parameters that the plan trains whole."""
        known = places(model, config)
        whole = [name for name in Plan.read(config.plan or {}).full if name in known and known[name].module is None]
        return [*always_trained(model, config), *whole]

    def _create_and_replace(
        self, peft_config: Any, adapter_name: str, target: nn.Module, *args: Any, current_key: str, **kwargs: Any
    ) -> None:
        base = target.base_layer if isinstance(target, SptLayer) else target
        if _planned(peft_config, current_key, base):  # of the targets, those that got something
            super()._create_and_replace(peft_config, adapter_name, target, *args, current_key=current_key, **kwargs)

    def make_adapter(self, config: SptConfig, key: str, base: nn.Module, rows: Rows | None) -> SptAdapter:
        plan = Plan.read(config.plan or {})
        sizes = {name: p.numel() for name, p in base.named_parameters()}
        counts: dict[str, int] = {}
        where: dict[str, list[torch.Tensor | None]] = {}
        whole, structured = {}, {}
        reads_input = key.endswith("attn.proj")
        for place in _planned(config, key, base):
            label = place.block or "all"
            if place.name in plan.ranks:
                structured[label] = self._module(config, place, plan.ranks[place.name], reads_input)
            elif place.name in plan.full:
                flat = place.tensor.replace(".", "_")
                whole[f"{flat}_{place.block}" if place.block else flat] = (place.tensor, place.start, place.shape[0])
            else:
                found = config.positions.get(place.name)
                where.setdefault(place.tensor, []).append(
                    None if found is None else found + place.start * place.columns
                )
                counts[place.tensor] = counts.get(place.tensor, 0) + plan.entries[place.name]
        entries = {}
        for name, count in counts.items():
            given = [part for part in where[name] if part is not None]
            entries[name] = Entries(count, sizes[name], torch.cat(given) if len(given) == len(where[name]) else None)
        dropout = 0.0 if reads_input else config.module_dropout
        adapter = SptAdapter(entries, whole, structured, dropout, config.module_drop_path)
        if not config.init_weights:
            adapter.start_at_random()
        return adapter

    @staticmethod
    def _module(config: SptConfig, place: Place, r: int, reads_input: bool) -> LowRank | Bottleneck:
        if config.structured == "lora":
            return LowRank(place.shape, place.start, r, config.init_weights)
        # The authors' adapter on the attention's output projection reads its input, and drops nothing of it.
        dropout = 0.0 if reads_input else config.module_dropout
        reads_input = reads_input and place.shape[0] == place.columns
        return Bottleneck(place.shape[0], place.start, r, config.init_weights, reads_input, dropout)

    def _check_merge_allowed(self) -> None:
        for module in self.model.modules():
            if isinstance(module, SptLayer):
                module.check_merge()  # before anything is merged


def check_plan(config: SptConfig, model: nn.Module) -> None:
    """Compare the plan with the model.

    Raises:
        ValueError: there is no plan, it is for another model, or asks for a rank that a matrix does not have.
    """
    if config.plan is None:
        raise ValueError(
            "SptConfig needs a plan, which is made from data: use config = vision_peft.spt_config(model, loader, "
            "budget=..., structured='lora'), or SptConfig.from_scores(model, vision_peft.sensitivity(model, loader)); "
            "`vision-peft train` makes it by itself"
        )
    plan, known = Plan.read(config.plan), places(model, config)
    plan.check({name: place.size for name, place in known.items()})
    for name, r in plan.ranks.items():
        if not known[name].is_matrix:
            raise ValueError(f"plan.ranks names {name!r}, which is no matrix: a module cannot stand on it")
        check_rank(r, known[name])
    for name in plan.entries:
        if known[name].module is None:
            raise ValueError(f"plan.entries names {name!r}, a parameter without a module: it can be trained whole only")


def _planned(config: SptConfig, key: str, base: nn.Module) -> list[Place]:
    plan = Plan.read(config.plan or {})
    named = {*plan.ranks, *plan.entries, *plan.full}
    return [place for place in module_places(config, key, base) if place.name in named]
