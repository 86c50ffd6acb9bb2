"""Which blocks of a branch make up each segment."""

from collections.abc import Sequence


def segments(depth: int, count: int, branch: str) -> list[list[int]]:
    """Blocks ``[first, last]`` of each of ``count`` segments, nearly equal, the longer ones last.

    Raises:
        ValueError: fewer blocks than segments.
    """
    if not 1 <= count <= depth:
        raise ValueError(f"n_interactions must be from 1 to the {depth} blocks of {branch}; found {count}")
    each, more = divmod(depth, count)
    found, first = [], 0
    for index in range(count):
        size = each + (index >= count - more)
        found.append([first, first + size - 1])
        first += size
    return found


def check_segments(given: Sequence[Sequence[Sequence[int]]], depths: Sequence[int], names: Sequence[str]) -> None:
    """Raise where given segments are not one list a branch, of one length, each going on where the last ended."""
    if len(given) != len(names) or len({len(own) for own in given}) > 1:
        found = [len(own) for own in given]
        raise ValueError(
            f"interaction_indexes must have one list for each of the {len(names)} branches, all of the same length; "
            f"found lengths {found}"
        )
    for own, depth, name in zip(given, depths, names, strict=True):
        pairs = [part for part in own if isinstance(part, Sequence) and len(part) == 2]
        if not own or len(pairs) < len(own):
            raise ValueError(
                f"interaction_indexes of {name} must be pairs of blocks, the first and last of each segment, such as "
                f"[[0, {depth - 1}]]; found {list(own)}"
            )
        end = -1
        for first, last in pairs:
            if first != end + 1 or last < end or last >= depth:
                raise ValueError(
                    f"interaction_indexes of {name} must run through blocks 0 to {depth - 1} without gaps, "
                    f"[{end + 1}, {end}] for none; found [{first}, {last}] after block {end}"
                )
            end = last
