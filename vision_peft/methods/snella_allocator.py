"""SNELLA's competition between layers: point sets with a sparsity of their own, and who divides the budget.

After every optimiser step the importance of all points is smoothed (`Importance`); at the start of a round the budget
of surviving entries (`BudgetSchedule`) is divided in proportion to the layers' scores, nobody above its size.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from peft_kernels.allocation import Importance, share_in_float32, share_with_least
from peft_kernels.layer import AdapterLayer
from peft_kernels.ops import DeltaSlice
from vision_peft.methods.kernelised import Points


class SnellaPoints(Points):
    """The point sets of one matrix, with the share s_l of entries that its gate drops as a buffer ``sparsity``."""

    sparsity: Tensor

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.register_buffer("sparsity", torch.tensor(self.share, dtype=torch.float64))
        self._read: tuple[int, int] | None = None

    def slices(self, scale: float = 1.0, row: int | None = None) -> list[DeltaSlice]:
        if not torch.compiler.is_compiling():  # a compiled graph holds the share for a constant and is made anew
            self.read()
        return super().slices(scale, row)

    def read(self) -> None:
        """Bring ``share`` up to the buffer, whoever has written to it; no look at the device where nobody has."""
        buffer = self.sparsity
        now = id(buffer), -1 if buffer.is_inference() else buffer._version
        if not buffer.is_meta and (now != self._read or buffer.is_inference()):
            self.share, self._read = buffer.item(), now

    def set_sparsity(self, value: float) -> None:
        """Let the gate drop the share ``value`` from now on."""
        self.sparsity.fill_(value)
        self.read()

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.read()

    def _apply(self, fn: Any, recurse: bool = True) -> SnellaPoints:
        sparsity = self._buffers.pop("sparsity")
        assert sparsity is not None
        super()._apply(fn, recurse)
        # In float64 whatever the model's dtype: half precision has too few digits for one entry of many.
        self._buffers["sparsity"] = sparsity if self.A.is_meta else sparsity.to(self.A.device)
        return self


class SnellaAllocator:
    """Divides the budget of surviving entries between the layers of one adapter while it trains.

    Call `update_and_allocate` after each optimiser step, before the gradients are cleared. Tuners own one (see
    `SnellaTuner.begin_allocation`); models without a tuner, such as those of diffusers, take it by itself.

    Args:
        model: the model with the adapter.
        steps: optimiser steps of the whole run; the schedule's length where the config's ``total`` gives none.
        steps_per_epoch: needed where the config counts in epochs.
        adapter_name: the adapter.
        parity: divide in the authors' float32 arithmetic, which loses an entry here and there, without ``min_keep``.

    Attributes:
        history: what each reallocation decided, plain data; not part of the state.

    Raises:
        ValueError: there is nothing to divide, or the schedule's length is not known or does not suit.
    """

    def __init__(
        self,
        model: nn.Module,
        steps: int | None = None,
        steps_per_epoch: int | None = None,
        adapter_name: str = "default",
        parity: bool = False,
    ) -> None:
        self.layers: dict[str, SnellaPoints] = {}
        for layer in (m for m in model.modules() if isinstance(m, AdapterLayer) and adapter_name in m.adapters):
            for label, points in layer.adapters[adapter_name].named_children():
                if isinstance(points, SnellaPoints) and points.config.gate != "none":
                    self.layers[points.key if points.key not in self.layers else f"{points.key}.{label}"] = points
        if not self.layers:
            raise ValueError(f"adapter {adapter_name!r} has no SNELLA layer with a gate: there is no budget to divide")
        config: Any = next(iter(self.layers.values())).config
        self.config, self.parity = config, parity
        by_epoch = config.unit == "epoch"
        if by_epoch and not steps_per_epoch:
            raise ValueError("SNELLA's schedule counts epochs (`unit`): `steps_per_epoch` must be given")
        self.steps_per_turn = int(steps_per_epoch or 1) if by_epoch else 1
        total = config.total if config.total is not None else (steps or 0) // self.steps_per_turn
        if not total:
            raise ValueError("the length of SNELLA's schedule is not known: give `total` in the config, or `steps`")
        self.schedule = config.schedule(total)
        self.capacity = {name: points.shape[0] * points.shape[1] for name, points in self.layers.items()}
        self.groups = {name: [f"{name}.A", f"{name}.B"] for name in self.layers}
        self.importance = Importance(self._tensors(), config.beta1, config.beta2, config.metric)
        self.history: list[dict[str, Any]] = []

    def _tensors(self) -> dict[str, nn.Parameter]:
        return {f"{name}.{letter}": getattr(p, letter) for name, p in self.layers.items() for letter in "AB"}

    def update_and_allocate(self, step: int) -> dict[str, Any] | None:
        """Take in the gradients of ``step`` (from 0); where the next step begins a round, maybe divide anew.

        Returns:
            What was decided: round, budget, and for each layer its score, surviving entries and sparsity.
        """
        self.importance.update(self._tensors())
        turn, rest = divmod(step + 1, self.steps_per_turn)
        return None if rest or turn >= self.schedule.total else self.allocate(turn)

    def allocate(self, turn: int) -> dict[str, Any] | None:
        """Divide the budget of round ``turn``, if it is divided then."""
        budget, due = self.schedule.at(turn, sum(self.capacity.values()))
        if not due:
            return None
        scores = self.importance.scores(self.groups)
        if self.config.size_weighted:
            scores = {name: score * self.capacity[name] for name, score in scores.items()}
        total = sum(scores.values())
        scores = {name: score / total if total else 1 / len(scores) for name, score in scores.items()}
        kept = self._divide(budget, scores)
        sparsity = {name: min(max(1 - kept[name] / size, 0.0), 1.0) for name, size in self.capacity.items()}
        for name, points in self.layers.items():
            points.set_sparsity(sparsity[name])
        decided = {"round": turn, "budget": budget, "scores": scores, "kept": kept, "sparsity": sparsity}
        self.history.append(decided)
        return decided

    def _divide(self, budget: float, scores: dict[str, float]) -> dict[str, int]:
        if self.parity:
            sizes = torch.tensor(list(self.capacity.values()))
            kept = share_in_float32(budget, torch.tensor(list(scores.values())), sizes)
            return dict(zip(scores, kept.tolist(), strict=True))
        row, least = self.config.min_keep is None, self.config.min_keep or 0
        floors = {n: min(p.shape[1] if row else least, self.capacity[n]) for n, p in self.layers.items()}
        return share_with_least(int(budget), scores, self.capacity, floors)

    def sparsity_pattern(self) -> dict[str, float]:
        """The present sparsity of each layer, as ``SnellConfig(sparsity_pattern=...)`` takes it."""
        return {name: points.sparsity.item() for name, points in self.layers.items()}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the adapter: tensors, and the schedule as plain data."""
        state: dict[str, Any] = {"schedule": asdict(self.schedule)}
        for letter, tensors in (("E", self.importance.E), ("U", self.importance.U)):
            state |= {f"{letter}.{name}": tensor for name, tensor in tensors.items()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`.

        Raises:
            ValueError: it is of another schedule or of other layers; nothing is changed then.
        """
        own = self.state_dict()
        if state.get("schedule") != own["schedule"]:
            raise ValueError(f"the state is of the schedule {state.get('schedule')}, expected {own['schedule']}")
        other = sorted(set(state) ^ set(own))
        if other or any(state[name].shape != own[name].shape for name in own if name != "schedule"):
            raise ValueError(
                f"the state is of other layers than this model's{f', first {other[0]!r}' if other else ''}"
            )
        for name in (name for name in own if name != "schedule"):
            own[name].copy_(state[name])
