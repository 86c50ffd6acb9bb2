"""What a pyramid is not made of, and the nearest thing that it is."""

from collections.abc import Iterable, Sequence
from typing import Any

from peft_kernels.config import nearest


def choose(owner: object, name: str, allowed: Iterable[str]) -> None:
    """Raise where the field ``name`` holds none of ``allowed``."""
    value, allowed = getattr(owner, name), list(allowed)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; found {value!r}{nearest(value, allowed)}")


def in_range(owner: object, name: str, within: bool, expected: str) -> None:
    """Raise where the field ``name`` is not within its range."""
    if not within:
        raise ValueError(f"{name} must be {expected}; found {getattr(owner, name)!r}")


def check_heads(width: int, heads: int, ratio: float | None) -> None:
    """Raise where so many heads cannot share the tokens' width or that of their values."""
    inner = width if ratio is None else int(ratio * width)
    fits = [m for m in range(1, width + 1) if width % m == 0 and inner % m == 0]
    if heads not in fits:
        of_values = "" if ratio is None else f" and the width of its values {inner} (deform_ratio {ratio:g})"
        closest = min(fits, key=lambda m: (abs(m - heads), m))
        raise ValueError(
            f"deform_num_heads must divide the branch's width {width}{of_values}; found {heads}, "
            f"and the nearest that does is {closest}"
        )


def check_size(branch: str, size: Any, stride: int) -> None:
    """Raise where a side of the picture is not made of whole patches."""
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if any(side < stride or side % stride for side in sides):
        near = [max(stride, round(side / stride) * stride) for side in sides]
        found, nearest_size = (s[0] if s[0] == s[1] else tuple(s) for s in (sides, near))
        raise ValueError(
            f"{branch} takes pictures whose sides are multiples of {stride}; found {found}, "
            f"and the nearest is {nearest_size}"
        )


def check_depths(given: Sequence[int] | None, count: int, output: str) -> list[int] | None:
    """The segments that four levels are merged after, counted from 0; raise where they are not four in order."""
    if given is None:
        return None
    if output != "dense":
        raise ValueError(f"merge_at needs output='dense'; found {output!r}")
    found = [k + count if k < 0 else k for k in given]
    if len(found) != 4 or sorted(found) != found or len(set(found)) < 4 or found[0] < 0 or found[-1] >= count:
        raise ValueError(f"merge_at must name four segments of 0 to {count - 1} in order; found {list(given)}")
    return found
