"""What is told when data or a model cannot be had; the same in both families."""

from peft_kernels.data_errors import DataError, UnknownNameError, unknown

__all__ = ["DataError", "UnknownNameError", "unknown"]
