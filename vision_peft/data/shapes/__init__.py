"""Generated clouds."""

from vision_peft.data.shapes.generated import Instances, Scans, Surfaces

__all__ = ["Instances", "Scans", "Surfaces"]
