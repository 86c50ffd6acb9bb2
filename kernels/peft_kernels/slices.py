"""Row blocks of fused projections: ``"attn.qkv[q,v]"`` adapts the query and value rows of ``attn.qkv`` alone.

PEFT adapts a fused matrix as a whole; visual tuning adapts each projection in it by itself.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from peft_kernels.config import nearest

Rows = dict[str, tuple[int, int]]
_SPEC = re.compile(r"\[([^\[\]]*)\]$")


def bare(target: str) -> str:
    """A target's name without its row blocks."""
    return _SPEC.sub("", target)


def rows_of(config: Any, key: str, base: nn.Module) -> Rows | None:
    """The row blocks of the module ``key`` that ``config`` adapts, ``{name: (first, last + 1)}``.

    ``None`` stands for all rows as one matrix. Blocks come from ``target_modules`` (``"qkv[q,v]"``), or from the
    config's ``fused_splits`` (``{"qkv": 3}``: every block) where the method has that field.

    Raises:
        ValueError: an unknown block name, or a number of blocks that does not divide the rows.
    """
    wanted: list[str] | None = None
    for target in config.target_modules if isinstance(config.target_modules, list) else []:
        spec = _SPEC.search(target)
        if spec and (key == bare(target) or key.endswith(f".{bare(target)}")):
            wanted = [name.strip() for name in spec.group(1).split(",") if name.strip()]
    splits = 3 if wanted is not None else None
    for name, count in (getattr(config, "fused_splits", None) or {}).items():
        if key == name or key.endswith(f".{name}"):
            splits = count
    if splits is None:
        return None
    names = ["q", "k", "v"] if splits == 3 else [str(i) for i in range(splits)]
    chosen = getattr(config, "slices", None)
    wanted = wanted if wanted is not None else list(chosen) if chosen is not None else names
    weight: Any = getattr(base, "in_proj_weight", None)
    if weight is None:
        weight = base.weight
    rows = int(weight.shape[0])
    if rows % splits:
        raise ValueError(f"{key!r} has {rows} output rows, which {splits} equal blocks do not divide (`fused_splits`)")
    for name in wanted:
        if name not in names:
            raise ValueError(f"{key!r} has the row blocks {', '.join(names)}; found {name!r}{nearest(name, names)}")
    size = rows // splits
    return {name: (i * size, (i + 1) * size) for i, name in enumerate(names) if name in wanted}
