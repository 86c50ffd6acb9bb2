"""Attaches PointGST."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from peft_kernels.feature import Feature
from peft_kernels.layer import AdapterLayer, features_of
from peft_kernels.slices import Rows
from peft_kernels.targets import compress, plain_modules
from peft_kernels.tuner import AdapterTuner
from vision_peft.methods.patches import point_backbone, token_names
from vision_peft.methods.pointgst.adapter import Pcsa
from vision_peft.methods.pointgst.encoder_norms import Statistics, StatisticsLayer
from vision_peft.methods.pointgst.spectra import SpectralLayer, SpectraSource, check_local_sizes

if TYPE_CHECKING:
    from vision_peft.methods.pointgst.config import PointGstConfig


class PointGstTuner(AdapterTuner):
    """Attaches PointGST."""

    target_kind = "mlp_norm"
    layer_cls = SpectralLayer

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict) -> Any:
        check_local_sizes(peft_config.basis.local_sizes, self._backbone()[1].group_divider.num_groups)
        return super()._prepare_adapter_config(peft_config, model_config)

    def default_targets(self, config: PointGstConfig, model: nn.Module) -> list[str] | str:
        """The norm before every block's MLP, and the patch encoder's batch norms where their statistics move."""
        found = super().default_targets(config, model)
        encoder = self._backbone()[1].encoder
        norms = {module for _, module in plain_modules(encoder) if isinstance(module, nn.BatchNorm1d)}
        if config.frozen_norm == "eval" or not norms:
            return found
        return f"{found}|{compress(model, [name for name, module in plain_modules(model) if module in norms])}"

    def _backbone(self) -> tuple[str, Any]:
        return point_backbone(self.model, "PointGST")

    def default_modules_to_save(self, config: PointGstConfig, model: nn.Module) -> list[str]:
        path, backbone = self._backbone()
        norm = [f"{path}.blocks.cls_norm".lstrip(".")] if hasattr(backbone.blocks, "cls_norm") else []
        return [*super().default_modules_to_save(config, model), *token_names(path, backbone), *norm]

    def _block(self, key: str) -> Any:
        return self.model.get_submodule(key.rpartition(".")[0])

    def check_target(self, config: PointGstConfig, key: str, base: nn.Module) -> None:
        if config.frozen_norm == "train" and isinstance(base, nn.BatchNorm1d):
            return
        if not hasattr(self._block(key), "drop_path2") or not isinstance(base, nn.LayerNorm):
            raise ValueError(
                "PointGST reads at the norm before a block's MLP and adds at the block's `drop_path2`; "
                f"{key!r} ({type(base).__name__}) in {type(self._block(key)).__name__} is no such norm"
            )

    def wrap(self, config: PointGstConfig, key: str, base: nn.Module) -> AdapterLayer:
        if isinstance(base, nn.BatchNorm1d):
            return StatisticsLayer(base, self.prefix)
        layer = SpectralLayer(base, self.prefix)
        layer.connect(self._block(key))
        present = next((m for m in self.model.modules() if isinstance(m, SpectralLayer)), None)
        layer.source = present.source if present is not None else self._source()
        return layer

    def _source(self) -> SpectraSource:
        backbone = self._backbone()[1]
        blocks = backbone.blocks
        return SpectraSource(backbone, list(getattr(blocks, "blocks", None) or blocks.layers))

    def make_adapter(self, config: PointGstConfig, key: str, base: nn.Module, rows: Rows | None) -> Feature:
        if isinstance(base, nn.BatchNorm1d):
            return Statistics(base)
        channels = features_of(base)[0]
        assert channels is not None
        adapter = Pcsa(channels, config.r, config.basis, config.basis_orientation == "vertex", config.scale)
        if config.init_weights:
            adapter.start_at_the_base()
        return adapter

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        for module in self.model.modules() if autocast_adapter_dtype else ():
            if isinstance(module, Statistics):  # PEFT casts parameters alone; in half precision means would not move
                module.float()

    @staticmethod
    def _warn_if_larger(config: Any, key: str, adapter: nn.Module, base: nn.Module) -> None:
        """An adapter is larger than the norm at which it reads, and has nothing to do with its size."""
