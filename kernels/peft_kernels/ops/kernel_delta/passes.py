"""Passes over the rows of a weight W0 + S: S from its slices block by block, and the slices' gradients from S's.

Blocks have the same bounds in the forward and the backward pass, so that both compute delta to the last bit and agree
on who survives; only the thresholds are handed from one to the other.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from .blocks import Group
from .gate import gate_
from .merge import Gradients, merge_kernel
from .spec import DeltaSlice
from .threshold import Selection, kth_magnitude, samples


class SlicePass:
    """One pass over the delta of one slice, by blocks of its weight's rows; S = delta * g * scale."""

    def __init__(self, part: DeltaSlice, t: Float[Tensor, ""] | None = None):
        self.part, self.spec, self.rows = part, part.spec, part.rows
        self.dtype = torch.promote_types(part.A.dtype, torch.float32)
        self.t = None if t is None else t.to(self.dtype)
        self.kernel = merge_kernel(part, self.dtype)
        self._own = self._g = self._h = part.A.new_empty(0, dtype=self.dtype)
        self._delta = self._own

    def covers(self, group: Group) -> bool:
        """Whether the rows belong to this slice."""
        return self.rows.start <= group.rows.start and group.rows.stop <= self.rows.stop

    def local(self, rows: slice) -> slice:
        """Rows of the weight, counted from the slice's first."""
        return slice(rows.start - self.rows.start, rows.stop - self.rows.start)

    def scratch(self) -> Float[Tensor, "rows in"]:
        """Room for the whole delta."""
        return self._own.new_empty(self.part.B.shape[1], self.part.A.shape[1])

    def sweep(
        self, groups: Sequence[Group], delta: Float[Tensor, "rows in"]
    ) -> Iterator[tuple[slice, Float[Tensor, "rows in"]]]:
        """Find the threshold, then gate block by block: the weight's rows, and the part of `delta` S may be put in."""
        blocks = [rows for group in groups if self.covers(group) for rows in group.blocks]
        index = self.spec.threshold_index(delta.numel())
        selection = None if index is None else self._selection(index, delta)
        for rows in blocks:
            part = delta[self.local(rows)]
            self.kernel.delta_(self.local(rows), part)
            if selection is not None:
                selection.see(part)
        if index is None:
            self.t = delta.new_zeros(())
        else:
            self.t = kth_magnitude(delta, index) if selection is None else selection.find(delta)
        for rows in blocks:
            self._gate(delta[self.local(rows)], self.t)
            yield rows, self._delta

    def _selection(self, index: int, delta: Float[Tensor, "rows in"]) -> Selection | None:
        positions = samples(delta.numel()) if delta.is_cpu else None
        if positions is None:
            return None
        i, j = positions // delta.shape[1], positions % delta.shape[1]
        return Selection(index, delta.numel(), self.kernel.at(i, j))

    def restore(self, rows: slice) -> None:
        """Compute and gate one block again, by the threshold of the forward pass."""
        assert self.t is not None
        shape = rows.stop - rows.start, self.part.A.shape[1]
        if self._own.shape != shape:
            self._own = self._own.new_empty(shape)
        self.kernel.delta_(self.local(rows), self._own)
        self._gate(self._own, self.t)

    def put(self, base: Float[Tensor, "rows in"] | None, out: Float[Tensor, "rows in"], factor: float = 1.0) -> None:
        """Write `base + factor * delta * g` of the block gated last; without a base, `delta * g`."""
        if base is None:
            torch.mul(self._delta, self._g, out=out)
        else:
            torch.addcmul(base, self._delta, self._g, value=factor, out=out)

    def accumulate(self, rows: slice, grad: Float[Tensor, "rows in"]) -> None:
        """Take in the gradient of S / scale on the block that `restore` computed last."""
        self._h = torch.mul(grad.to(self.dtype), self._g, out=self._room(self._h))
        self.kernel.accumulate(self.local(rows), self._h)

    def gradients(self, gain: float = 1.0) -> Gradients:
        """Gradients of A, B and the scalars, times `gain`, in their dtypes."""
        A, B, scalars = self.kernel.gradients()
        factor = self.spec.scale * gain
        if scalars is not None and self.part.scalars is not None:
            scalars = (scalars * factor).to(self.part.scalars.dtype)
        return (A * factor).to(self.part.A.dtype), (B * factor).to(self.part.B.dtype), scalars

    def _gate(self, delta: Float[Tensor, "rows in"], t: Float[Tensor, ""]) -> None:
        self._delta = delta
        self._g = self._room(self._g)
        gate_(delta, t, self.spec, self._g)

    def _room(self, buffer: Tensor) -> Tensor:
        if buffer.shape == self._delta.shape:
            return buffer
        return torch.empty_like(self._delta, memory_format=torch.contiguous_format)
