"""Models registered with timm; importing this package registers them."""

from vision_peft.models.fdconv import (
    fdconv_convnext_tiny,
    fdconv_resnet18,
    fdconv_resnet50,
    fdconv_resnet101,
    fdconv_swin_tiny,
)
from vision_peft.models.piip import Piip, pyramid
from vision_peft.models.point_checkpoints import LoadReport, load_point_checkpoint
from vision_peft.models.point_gpt import PointGpt, point_gpt_b, point_gpt_l, point_gpt_s
from vision_peft.models.point_parts import PointParts, point_mae_parts
from vision_peft.models.point_pixels import PointToPixel, point_to_pixel
from vision_peft.models.point_transformer import (
    PointTransformer,
    point_act,
    point_bert,
    point_mae,
    point_mini,
    point_recon,
)
from vision_peft.models.segmenter import Segmenter
from vision_peft.models.torchvision_backbone import TorchvisionBackbone, torchvision_backbone
from vision_peft.models.vit_mini import vit_mini

__all__ = [
    "LoadReport",
    "Piip",
    "PointGpt",
    "PointParts",
    "PointToPixel",
    "PointTransformer",
    "Segmenter",
    "TorchvisionBackbone",
    "fdconv_convnext_tiny",
    "fdconv_resnet18",
    "fdconv_resnet50",
    "fdconv_resnet101",
    "fdconv_swin_tiny",
    "load_point_checkpoint",
    "point_act",
    "point_bert",
    "point_gpt_b",
    "point_gpt_l",
    "point_gpt_s",
    "point_mae",
    "point_mae_parts",
    "point_mini",
    "point_recon",
    "point_to_pixel",
    "pyramid",
    "torchvision_backbone",
    "vit_mini",
]
