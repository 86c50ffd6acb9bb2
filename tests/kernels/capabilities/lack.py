"""What a method does not do, and the reasons as the table words them."""

from __future__ import annotations

from dataclasses import dataclass

# Where a question makes no sense; any other verdict but "yes" is the regular expression that the refusal matches.
NO_MEANING = "–"
REASONS = {
    "SPT finds nothing to train": "adapts the modules inside of a block, each by itself",
    "adapts whole modules": "adapts whole modules; SNELL and sliced LoRA take row blocks",
    "one input feature per output": "pairs input with output features; a depthwise filter has one input feature",
    "Config adapts matrices": "adapts matrices; a norm or a block has none of its own",
    "has no bias to train": "there is no bias to train",
    "has no parameter to train": "there is no parameter of its own to train",
    "has nothing that this DiffFitConfig trains": "adapts the modules inside of a block, each by itself",
    "SSF after a whole": "nothing linear takes up a scale of the residual stream",
    "adapts linear layers": "adapts linear layers; PEFT's LoRA has the others",
    "cannot be merged: an activation function stands between": "an activation function stands between its matrices",
    "cannot be merged: a GELU stands between": "a GELU stands between its layers; what reads the skip is not linear",
    "cannot be merged: prompts are tokens": "prompts are tokens, not a change of weights",
    "cannot be merged: its kernel depends on the input": "every sample has a kernel of its own",
    "adapts 2d convolutions and linear layers": "adapts linear layers and 2d convolutions",
    "has 2 groups": "its spectrum is that of one matrix; a grouped convolution has several",
    "is a depthwise convolution": "leaves depthwise convolutions as they are, as the authors do",
    "prompts whole transformer": "puts tokens into the sequence of a transformer block",
    "neither a module nor a parameter": "trains whole modules",
    "Only one adapter can be set at a time": "PEFT runs one trained copy of a module at a time",
    "a linear probe adapts no modules": "has no targets; `modules_to_save` names what it trains",
    "is not supported": "PEFT has no LoRA for norms and blocks",
    "must match the size of tensor b": "PEFT's `A` has no dilation: the forward pass fails",
    "not found in the base model": "PEFT does not know row blocks",
    "does not support DoRA": "PEFT has no DoRA for attention modules",
    "does not support mixed adapter batches": "PEFT has no mixed batches for attention modules",
    "Merging is not supported for": "PEFT does not merge into grouped convolutions",
    "Cannot pass `adapter_names` when DoRA is enabled": "PEFT has no mixed batches for DoRA",
    "does not allow inference with more than one adapter": "PEFT runs one set of norms at a time",
    "no attribute 'set_scale'": "PEFT's norms have no scale",
}


@dataclass(frozen=True)
class Lack:
    """What a method does not do.

    Attributes:
        capabilities: the rows.
        match: what its error matches, or `NO_MEANING`.
        note: the reason as the table gives it; if there is none, `REASONS` has it.
        layers: the columns; all if none are named.
    """

    capabilities: tuple[str, ...]
    match: str
    note: str = ""
    layers: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """What the table says: `NO_MEANING`, or "no: " and the reason."""
        return NO_MEANING if self.match == NO_MEANING else f"no: {self.note or REASONS[self.match]}"
