"""Generated clouds."""

from vision_peft.data.shapes.generated import Scans, Surfaces

__all__ = ["Scans", "Surfaces"]
