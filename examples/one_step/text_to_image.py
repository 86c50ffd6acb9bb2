"""A picture in one step.

python examples/one_step/text_to_image.py PIPELINE ADAPTER PROMPT OUT.png
"""

import sys

import torch

import diffusion_peft as dp
from diffusion_peft.pipelines.opening import open_pipeline

if len(sys.argv) != 5:
    sys.exit(__doc__)
name, adapter, prompt, out = sys.argv[1:]
pipe = open_pipeline(name)  # mini_sd, a folder, or a name of the hub
dp.load_adapter(pipe, adapter)
dp.one_step(pipe, adapter)
picture = pipe(prompt, num_inference_steps=1, guidance_scale=1.0, generator=torch.Generator().manual_seed(0)).images[0]
picture.save(out)
