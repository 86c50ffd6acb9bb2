"""SaRA while it trains: the penalty on the rank, and the second selection.

The penalty is no term of the loss: one random matrix P = scatter(M, v) a step, and ``λ (U Vᵀ)[M]`` of its singular
vectors is added to the gradient of v after clipping, so that it neither is clipped nor lets the task's gradient be.
That comes once an optimiser step, whatever the accumulation, in full precision, and the same in all processes: the draw
is a function of seed and step, and a gradient that all processes have averaged has the same summand added everywhere.

The second selection, after T1 steps: ``keep = |v| < θ``. The others are frozen at their trained values. v keeps its
size, because an optimiser's state, the buckets of data parallelism and averaged copies have it too: no gradient reaches
the frozen entries any longer, and whatever decay or momentum did to them is taken back after each step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion_peft.denoiser import denoiser
from diffusion_peft.methods.sara.layer import SaraAdapter
from diffusion_peft.methods.sara.selection import own_threshold
from peft_kernels.calls import get_tensor
from peft_kernels.entries import Entries
from peft_kernels.layer import AdapterLayer
from peft_kernels.ops import nuclear_subgradient

FEWEST = 100  # entries of a matrix that is penalised must be more than this, as in the authors' code


class SaraAllocator:
    """The calls around each optimiser step of one adapter, with any optimiser.

        allocator = SaraAllocator(unet, steps=5000, optimizer=optimizer)
        for step, batch in enumerate(batches):
            loss(unet, batch).backward()
            clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            allocator.update_and_allocate(step)
            optimizer.zero_grad()

    With the optimiser given, its own hooks call `before_step`; without, call that between clipping and the step.

    Args:
        model: the model with the adapter, or the pipeline that holds it.
        steps: optimiser steps of the whole run; where ``reselect_step`` is given it may be left out.
        optimizer: of torch's kind, or accelerate's around one; needed for ``keep_moments=False``.
        adapter_name: the adapter.

    Raises:
        ValueError: there is no such adapter, `steps` or `SaraConfig.reselect_step` does not suit, or the optimiser has
            none of the adapter's parameters.
    """

    def __init__(
        self, model: Any, steps: int | None = None, optimizer: Any = None, adapter_name: str = "default"
    ) -> None:
        self.config: Any = None
        self.entries: dict[str, Entries] = {}
        self.tensors: dict[str, Tensor] = {}
        known: set[int] = set()
        model = denoiser(model)
        for layer in (m for m in model.modules() if isinstance(m, AdapterLayer) and adapter_name in m.adapters):
            adapter = layer.adapters[adapter_name]
            if not isinstance(adapter, SaraAdapter):
                continue
            for name in adapter.tensors:
                part, tensor = adapter.part(name), get_tensor(layer.base_layer, name)
                if id(part) not in known and tensor is not None:  # of tied tensors, the first
                    known.add(id(part))
                    self.entries[f"{adapter.key}.{name}"], self.tensors[f"{adapter.key}.{name}"] = part, tensor
                    self.config = adapter.config
        if not self.entries:
            raise ValueError(f"adapter {adapter_name!r} is no SaRA adapter of this {type(model).__name__}")
        self.reselect_after = self._reselect_after(steps)
        least = self.config.rank_min_dim
        self.matrices = [n for n, t in self.tensors.items() if t.ndim == 2 and min(t.shape) > least]
        self.turn = 0  # optimiser steps begun
        self.reselected = self.skip = False
        self.held: dict[str, Tensor] = {}
        self._kept: dict[str, Tensor] = {}
        self._begun, self.optimizer = False, None
        if optimizer is not None:
            self.watch(optimizer)

    def _reselect_after(self, steps: int | None) -> int:
        if steps is not None and (not isinstance(steps, int) or steps < 1):
            raise ValueError(f"`steps` must be the optimiser steps of the run, an integer >= 1; found {steps!r}")
        wanted = self.config.reselect_step
        if wanted is None:
            if steps is None:
                raise ValueError(
                    "SaRA selects again half-way: give `steps`, the optimiser steps of the run, or "
                    "SaraConfig.reselect_step (0 for never)"
                )
            return steps // 2
        if steps is not None and wanted >= steps:
            raise ValueError(f"SaraConfig.reselect_step must be less than the run's {steps} steps; found {wanted}")
        return wanted

    def watch(self, optimizer: Any) -> None:
        """Have the optimiser's own hooks make the calls around its steps; of accelerate's, those of the one within.

        Raises:
            TypeError: it is no optimiser of torch's kind.
            ValueError: it has none of the adapter's parameters.
        """
        inner: Any = getattr(optimizer, "optimizer", optimizer)
        if not hasattr(inner, "_optimizer_step_pre_hooks"):
            raise TypeError(
                f"SaraAllocator takes an optimiser of torch's kind; found {type(optimizer).__name__}: leave it out, "
                "and call `before_step()` before each `optimizer.step()`"
            )
        held = {id(parameter) for group in inner.param_groups for parameter in group["params"]}
        if not any(id(part.values) in held for part in self.entries.values()):
            raise ValueError(
                "the optimiser has none of the adapter's parameters: make it after the adapter is attached"
            )
        self.optimizer = optimizer = inner
        optimizer.register_step_pre_hook(lambda *_: self.before_step())
        optimizer.register_step_post_hook(lambda *_: self.after_step())

    # --- around a step ---------------------------------------------------------------------------------------------
    @torch.no_grad()
    def before_step(self) -> None:
        """Between clipping and the optimiser's step: add the penalty's gradient."""
        self._begun = True
        if self.skip:
            self._forget_moments()
        elif self.config.rank_weight:
            self.penalise()
        self.turn += 1
        self._kept = {n: part.values.clone() for n, part in self.entries.items() if part.frozen is not None}

    @torch.no_grad()
    def after_step(self) -> None:
        """After the optimiser's step: put frozen entries back."""
        for name, kept in self._kept.items():
            part = self.entries[name]
            assert part.frozen is not None
            part.values.copy_(torch.where(part.frozen.to(kept.device), kept, part.values))
        self._kept = {}

    def update_and_allocate(self, step: int) -> dict[str, Any] | None:
        """After the optimiser's step number ``step`` (from 0); selects again when it is time.

        Returns:
            How many entries were trained and are trained from now on, if that has changed.

        Raises:
            RuntimeError: nobody has called `before_step`.
        """
        if self.optimizer is None and not self._begun:
            raise RuntimeError(
                "SaRA's penalty is not in force: give the optimiser to SaraAllocator, or call its `before_step()` "
                "before each `optimizer.step()`"
            )
        self._begun = False
        self.after_step()
        if self.reselected or not self.reselect_after or step + 1 < self.reselect_after:
            return None
        return self.reselect()

    # --- the penalty -----------------------------------------------------------------------------------------------
    def draw(self) -> list[str]:
        """The matrices that are penalised from this step on: a function of `SaraConfig.rank_seed` and the step."""
        generator = np.random.default_rng([self.config.rank_seed, self.turn])
        count = min(self.config.rank_num, len(self.matrices))
        return [self.matrices[i] for i in generator.choice(len(self.matrices), count, replace=False)]

    def penalise(self) -> None:
        """Add ``λ (U Vᵀ)[M]`` to the gradients of the matrices whose turn it is."""
        if self.turn % self.config.rank_every == 0:
            self.held = {}
            for name in self.draw():
                part = self.entries[name]
                active = slice(None) if part.frozen is None else ~part.frozen.to(part.values.device)
                index, values = part.places()[active], part.values.detach()[active]
                if len(index) > FEWEST:
                    values = values.to(torch.promote_types(values.dtype, torch.float32))
                    self.held[name] = nuclear_subgradient(values, index, tuple(self.tensors[name].shape))[0]  # type: ignore[arg-type]
        # A fused optimiser divides the gradients by GradScaler's factor itself, in its step.
        factor = getattr(self.optimizer, "grad_scale", None)
        weight = self.config.rank_weight if factor is None else self.config.rank_weight * factor
        for name, gradient in self.held.items():
            part = self.entries[name]
            if part.values.grad is None:
                part.values.grad = torch.zeros_like(part.values)
            active = slice(None) if part.frozen is None else ~part.frozen.to(part.values.device)
            part.values.grad[active] += (weight * gradient).to(part.values.dtype)

    # --- the second selection --------------------------------------------------------------------------------------
    @torch.no_grad()
    def reselect(self) -> dict[str, Any]:
        """Freeze the entries that have left the band ``|v| < θ``."""
        if not self.config.keep_moments and self.optimizer is None:
            raise ValueError("SaraConfig.keep_moments=False needs the optimiser: give it to SaraAllocator")
        before = sum(len(part.values) for part in self.entries.values())
        after = 0
        for name, part in self.entries.items():
            keep = part.values.abs() < self.threshold(name)
            part.frozen = None if bool(keep.all()) else ~keep
            after += int(keep.sum())
        self.reselected, self.skip, self.held = True, not self.config.keep_moments, {}
        return {"entries": before, "trained": after}

    def threshold(self, name: str) -> float:
        """θ of a tensor."""
        if self.config.scope == "global" and self.config.threshold is not None:
            return self.config.threshold
        return own_threshold(self.tensors[name], self.entries[name].places())

    def _forget_moments(self) -> None:
        """Let the optimiser pass over the entries in this step, and begin anew with them in the next."""
        assert self.optimizer is not None
        for part in self.entries.values():
            part.values.grad = None
            self.optimizer.state[part.values].clear()
        self.skip = False

    # --- resuming --------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the adapter and the optimiser's state."""
        state: dict[str, Any] = {name: getattr(self, name) for name in ("turn", "reselected", "skip", "reselect_after")}
        state |= {f"frozen.{n}": part.frozen for n, part in self.entries.items() if part.frozen is not None}
        return state | {f"held.{name}": gradient for name, gradient in self.held.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`.

        Raises:
            ValueError: it is of another schedule or of other entries; nothing is changed then.
        """
        if state.get("reselect_after") != self.reselect_after:
            raise ValueError(
                f"the state selects again after step {state.get('reselect_after')}, expected {self.reselect_after}"
            )
        frozen = {key.removeprefix("frozen."): mask for key, mask in state.items() if key.startswith("frozen.")}
        held = {key.removeprefix("held."): part for key, part in state.items() if key.startswith("held.")}
        for name, mask in frozen.items():
            if name not in self.entries or mask.shape != self.entries[name].values.shape:
                raise ValueError(f"the state is of other entries than this model's, first those of {name!r}")
        for name in held:
            if name not in self.entries:
                raise ValueError(f"the state is of other entries than this model's, first those of {name!r}")
        self.turn, self.reselected, self.skip = state["turn"], state["reselected"], state["skip"]
        for name, part in self.entries.items():
            part.frozen = frozen[name].clone() if name in frozen else None
        self.held = {name: part.to(self.entries[name].values.device) for name, part in held.items()}
