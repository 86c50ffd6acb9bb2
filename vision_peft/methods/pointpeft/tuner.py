"""Attaches Point-PEFT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from timm.models.vision_transformer import Block
from torch import nn

from peft_kernels.slices import Rows
from peft_kernels.tuner import AdapterTuner
from vision_peft.methods.patches import point_backbone, token_names
from vision_peft.methods.pointpeft.adapter import PointPeft, Shared
from vision_peft.methods.pointpeft.layer import PointPeftLayer, PointPeftSource

if TYPE_CHECKING:
    from vision_peft.methods.pointpeft.config import PointPeftConfig

_BIASES = ("norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")


class PointPeftTuner(AdapterTuner):
    """Attaches Point-PEFT."""

    target_kind = "block"
    layer_cls = PointPeftLayer

    def _backbone(self) -> tuple[str, Any]:
        return point_backbone(self.model, "Point-PEFT")

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict) -> Any:
        width = self._backbone()[1].embed_dim
        peft_config.check_memory(width)
        return super()._prepare_adapter_config(peft_config, model_config)

    def default_modules_to_save(self, config: PointPeftConfig, model: nn.Module) -> list[str]:
        path, backbone = self._backbone()
        norm = [f"{path}.norm.{name}".lstrip(".") for name in ("weight", "bias")]
        return [*super().default_modules_to_save(config, model), *token_names(path, backbone), *norm]

    def extra_tensors(self, config: PointPeftConfig, model: nn.Module) -> list[str]:
        """The biases of the blocks' norms and projections."""
        targeted = config
        if config.target_modules is None:
            targeted = config.unresolved_copy()
            targeted.target_modules = self.default_targets(config, model)
        found = [(key, getattr(module, "base_layer", module)) for key, module in self._targets(targeted)]
        return [f"{key}.{part}.bias" for key, base in found if isinstance(base, Block) for part in _BIASES]

    def check_target(self, config: PointPeftConfig, key: str, base: nn.Module) -> None:
        if not isinstance(base, Block):
            raise ValueError(
                "Point-PEFT stands around the parts of blocks such as point_mae has; "
                f"{key!r} is a {type(base).__name__}"
            )
        heads = _heads(base)
        if config.attn_dim % heads:
            raise ValueError(
                f"PointPeftConfig.attn_dim must be a multiple of the {heads} attention heads; found {config.attn_dim}"
            )

    def make_adapter(self, config: PointPeftConfig, key: str, base: nn.Module, rows: Rows | None) -> PointPeft:
        assert isinstance(base, Block)
        channels: int = self._backbone()[1].embed_dim
        first = key == next(self._targets(config))[0]
        shared = Shared(channels, _heads(base), config, config.memory) if first else None
        return PointPeft(channels, config, int(key.rpartition(".")[2]) < config.prompt_depth, shared)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        layers = [module for module in self.model.modules() if isinstance(module, PointPeftLayer)]
        for layer in layers:
            if "source" in layer.__dict__:
                layer.source.detach()
        source = PointPeftSource(self._backbone()[1], layers)
        for layer in layers:
            layer.source = source

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        for module in self.model.modules():
            if isinstance(module, PointPeft):  # PEFT casts parameters, and no statistics
                module.norm.to(module.norm.weight.dtype)

    @staticmethod
    def _warn_if_larger(config: Any, key: str, adapter: nn.Module, base: nn.Module) -> None:
        """What all blocks share counts for all of them."""


def _heads(block: Block) -> int:
    attention: Any = block.attn
    return attention.num_heads
