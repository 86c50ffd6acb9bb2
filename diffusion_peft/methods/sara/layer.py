"""What SaRA computes in one module: its tensors with the trained values in their places."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from diffusion_peft.methods.sara.selection import same_values
from peft_kernels.adapter_files import AdapterError
from peft_kernels.calls import flat_name, get_tensor
from peft_kernels.entries import Entries, entries_forward, runs_entries
from peft_kernels.reparam import Reparam, ReparamLayer

if TYPE_CHECKING:
    from diffusion_peft.methods.sara.config import SaraConfig


class SaraAdapter(Reparam):
    """The trained entries of one module.

    Args:
        config: the settings.
        key: the module's name.
        entries: by the tensor's name.
        recompute: as of `Reparam`; small tensors are not worth it.
    """

    def __init__(self, config: SaraConfig, key: str, entries: Mapping[str, Entries], recompute: bool) -> None:
        super().__init__()
        self.config, self.key, self.recompute = config, key, recompute
        self.tensors = tuple(entries)
        self.entries = nn.ModuleDict({flat_name(name): part for name, part in entries.items()})

    def part(self, name: str) -> Entries:
        """The entries of the tensor ``name``."""
        return self.entries[flat_name(name)]  # type: ignore[return-value]

    def delta(self, name: str, tensor: Tensor) -> Tensor:
        summand = self.part(name).summand(tensor)
        return summand if self.config.alpha == 1 else self.config.alpha * summand

    def effective(self, name: str, tensor: Tensor | None) -> Tensor:
        if tensor is None or self.config.alpha != 1:
            return super().effective(name, tensor)
        return self.part(name).effective(tensor)


class SaraLayer(ReparamLayer):
    """A module with SaRA's adapters; linear layers and convolutions run as one operator."""

    def __init__(self, base_layer: nn.Module, prefix: str) -> None:
        super().__init__(base_layer, prefix)
        self.register_load_state_dict_post_hook(_compare_with_base)

    def adapted_forward(self, *args: Any, **kwargs: Any) -> Any:
        base: Any = self.base_layer
        if not runs_entries(base, args, kwargs):
            return super().adapted_forward(*args, **kwargs)
        adapters = [(a, scale) for a, scale in self.running if isinstance(a, SaraAdapter)]
        bias = self.effective_tensor("bias") if any("bias" in a.tensors for a, _ in adapters) else base.bias
        found = [(a.part("weight"), scale * a.config.alpha) for a, scale in adapters if "weight" in a.tensors]
        return entries_forward(base, args[0], found, bias)

    def _branch_pays(self) -> bool:
        return False  # values that replace others are rounded once, not lost beside larger ones


def _compare_with_base(layer: nn.Module, _: Any) -> None:
    """After a file has been read, refuse a base model other than the one it was trained on.

    Raises:
        AdapterError: with the tensor whose values differ.
    """
    assert isinstance(layer, SaraLayer)
    for adapter in layer.adapters.values():
        assert isinstance(adapter, SaraAdapter)
        for name in adapter.tensors:
            part, origin = adapter.part(name), (adapter.config.origin or {}).get(f"{adapter.key}.{name}")
            base = layer._originals.get(name)
            base = get_tensor(layer.base_layer, name) if base is None else base
            if base is None or base.is_meta or part.index.is_meta or not part.placed or origin is None:
                continue
            if not same_values(base, part.places(), origin):
                raise AdapterError(
                    f"the adapter's entries of {adapter.key}.{name} were selected in another base model: its "
                    f"{origin['dtype']} values there are not this model's. Load the base model it was trained on"
                )
