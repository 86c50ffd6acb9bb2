"""The white part of a mask drawn anew in one step; the rest stays as it is.

python examples/one_step/inpaint.py PIPELINE ADAPTER PICTURE MASK PROMPT OUT.png

From noise; around the hole the latents are the picture's own, so that the decoder joins both.
"""

import sys

import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms.functional import pil_to_tensor

import diffusion_peft as dp
from diffusion_peft.pipelines.opening import open_pipeline

if len(sys.argv) != 7:
    sys.exit(__doc__)
name, adapter, picture, mask, prompt, out = sys.argv[1:]
pipe = open_pipeline(name)
dp.load_adapter(pipe, adapter)
dp.one_step(pipe, adapter)
image, hole = Image.open(picture).convert("RGB"), Image.open(mask).convert("L")
asked = {"height": image.height, "width": image.width, "num_inference_steps": 1, "guidance_scale": 1.0}
found = pipe(prompt, **asked, generator=torch.Generator().manual_seed(0), output_type="latent").images
with torch.no_grad():
    scale = pipe.vae.config.scaling_factor
    known = pipe.vae.encode(pipe.image_processor.preprocess(image)).latent_dist.mode() * scale
    anew = F.adaptive_max_pool2d(pil_to_tensor(hole).float(), known.shape[-2:]) > 127
    decoded = pipe.vae.decode(torch.where(anew, found, known) / scale).sample
[joined] = pipe.image_processor.postprocess(decoded)
Image.composite(joined, image, hole).save(out)
