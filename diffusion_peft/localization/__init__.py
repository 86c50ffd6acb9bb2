"""Which attention layers of a text-to-image model draw the text, and what to do with just these.

Staniszewski et al.: "Precise Parameter Localization for Textual Generation in Diffusion Models", ICLR 2025
(arXiv 2502.09835). A picture is made from a source prompt, but in one layer the keys and values of the text are those
of a target prompt: where it keeps the scene and draws the target's word, that layer decides the text.
"""

from diffusion_peft.localization.editing import Edited, edit_text, replace_words
from diffusion_peft.localization.inversion import invert_pictures
from diffusion_peft.localization.layers import (
    TextLayer,
    localized_lora,
    projection_parameters,
    published_layers,
    text_layers,
)
from diffusion_peft.localization.patching import patch_text
from diffusion_peft.localization.projections import Slots
from diffusion_peft.localization.report import Localization
from diffusion_peft.localization.search import localize_text_layers

__all__ = [
    "Edited",
    "Localization",
    "Slots",
    "TextLayer",
    "edit_text",
    "invert_pictures",
    "localize_text_layers",
    "localized_lora",
    "patch_text",
    "projection_parameters",
    "published_layers",
    "replace_words",
    "text_layers",
]
