"""A value that one layer of a block hands to a later layer of the same block, such as the input of its second norm."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from peft_kernels.context import SideInputs


class Slot:
    """One value handed from a layer to a later one of the same block: produced and consumed inside one call.

    The call that opens the slot is the one that gradient checkpointing repeats, so the value is made anew with it.
    """

    def __init__(self) -> None:
        self._inputs = SideInputs()

    def open(self) -> AbstractContextManager[None]:
        """Make room for one value until the end of the ``with`` block; what a block inside holds is another value."""
        return self._inputs.bind()

    def put(self, value: Any) -> None:
        """Hand over ``value``.

        Raises:
            LookupError: the slot is not open.
        """
        self._inputs.put("value", value)

    def get(self) -> Any:
        """The value that was put.

        Raises:
            LookupError: none was.
        """
        return self._inputs.get("value")
