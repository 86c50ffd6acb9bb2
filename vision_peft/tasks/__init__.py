"""What a run does with a model of this family: its data, its loss, its evaluation."""

from vision_peft.tasks.classification import Classification

__all__ = ["Classification"]
