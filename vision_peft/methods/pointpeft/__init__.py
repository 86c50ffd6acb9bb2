"""Point-PEFT: prompts with a memory of the training clouds, and adapters that pool tokens over neighbourhoods.

Tang et al., "Point-PEFT: Parameter-Efficient Fine-Tuning for 3D Pre-trained Models", AAAI 2024 (arXiv 2310.03059).
`memory` makes the memory and the tokens from it, `geometry` what is known of patches' places, `adapter` computes,
`layer` stands around a block, `tuner` attaches, `config` holds the settings.
"""

from vision_peft.methods.pointpeft.config import PointPeftConfig, point_peft_config
from vision_peft.methods.pointpeft.memory import bound_features, cloud_features

__all__ = ["PointPeftConfig", "bound_features", "cloud_features", "point_peft_config"]
