"""Which function rebuilds which kind of file, and how close its results must come."""

from __future__ import annotations

from .cases import baselines, difffit, fdconv, hipa, sara, scale_long, scedit, snell, snella, spt, spt_selection
from .harness import Kind

TABLE: dict[tuple[str, str], Kind] = {
    ("baselines", "adapter_plus_stack"): Kind(baselines.adapter_plus_stack, baselines.tolerance),
    ("baselines", "adapter_positions"): Kind(baselines.adapter_positions, baselines.tolerance),
    ("baselines", "lora_fused_qkv"): Kind(baselines.lora_fused_qkv, baselines.tolerance),
    ("baselines", "ssf_convnext"): Kind(baselines.ssf_convnext, baselines.tolerance),
    ("baselines", "ssf_vit"): Kind(baselines.ssf_vit, baselines.tolerance),
    ("baselines", "vpt_deep"): Kind(baselines.vpt_deep, baselines.tolerance),
    ("difffit", "dit_block"): Kind(difffit.dit_block, difffit.tolerance),
    ("difffit", "dit_model"): Kind(difffit.dit_model, difffit.tolerance),
    ("difffit", "linear"): Kind(difffit.linear, difffit.tolerance),
    ("difffit", "mlp"): Kind(difffit.mlp, difffit.tolerance),
    ("difffit", "position_embedding"): Kind(difffit.position_embedding, difffit.tolerance),
    ("difffit", "unet_block"): Kind(difffit.unet_block, difffit.tolerance),
    ("fdconv", "conv"): Kind(fdconv.conv, fdconv.tolerance),
    ("fdconv", "linear"): Kind(fdconv.linear, fdconv.tolerance),
    ("sara", "masked_training"): Kind(sara.masked_training, sara.training_tolerance, also=r"mask\..*"),
    ("sara", "nuclear_norm"): Kind(sara.nuclear_norm, sara.norm_tolerance),
    ("sara", "official_unstructured"): Kind(sara.official_unstructured, sara.training_tolerance, also=r"mask\..*"),
    ("sara", "selection_dtype"): Kind(sara.selection_dtype, sara.exact, also=r"mask\..*"),
    ("hipa", "dists_statistic"): Kind(hipa.dists_statistic, hipa.tolerance),
    ("hipa", "edge"): Kind(hipa.edge, hipa.tolerance),
    ("hipa", "highpass"): Kind(hipa.highpass_case, hipa.tolerance, also=hipa.LINES),
    ("hipa", "onestep_x0"): Kind(hipa.onestep_x0, hipa.tolerance, also=hipa.SCHEDULE),
    ("hipa", "train_step"): Kind(hipa.train_step, hipa.training_tolerance),
    ("scalelong", "scalelong"): Kind(scale_long.token_skips, scedit.tolerance),
    ("scedit", "adapter"): Kind(scedit.adapter, scedit.tolerance),
    ("scedit", "csc"): Kind(scedit.csc, scedit.tolerance),
    ("scedit", "unet"): Kind(scedit.unet, scedit.tolerance),
    ("snell", "delta"): Kind(snell.delta, snell.tolerance),
    ("snell", "training"): Kind(snell.training, snell.training_tolerance, also=r"param\.\w+\.step[1-9]\d*"),
    ("snell", "vit_block"): Kind(snell.vit_block, snell.tolerance),
    ("spt", "block"): Kind(spt.block, spt.block_tolerance),
    ("spt", "select"): Kind(spt_selection.select, spt_selection.exact),
    ("spt", "sparse_linear"): Kind(spt.sparse_linear_case, spt.linear_tolerance),
    ("snella", "allocation_trace"): Kind(snella.allocation_trace, snella.trace_tolerance, also=r"(epoch|final)\..*"),
    ("snella", "delta"): Kind(snella.delta, snell.tolerance),
    ("snella", "training"): Kind(snella.training, snell.training_tolerance, also=r"param\.\w+\.step[1-9]\d*"),
    ("snella", "vit_block"): Kind(snella.vit_block, snell.tolerance),
    ("snella", "water_filling"): Kind(snella.water_filling, snella.volume_tolerance, also=r"case\d+\.volume"),
}
