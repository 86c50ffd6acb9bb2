"""What a run does with a model of this family: its data, its loss, its evaluation."""

from vision_peft.tasks.classification import Classification
from vision_peft.tasks.clouds import CloudClassification
from vision_peft.tasks.masked_clouds import MaskedClouds
from vision_peft.tasks.parts import PartSegmentation
from vision_peft.tasks.segmentation import Segmentation

__all__ = ["Classification", "CloudClassification", "MaskedClouds", "PartSegmentation", "Segmentation"]
