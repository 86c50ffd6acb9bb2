"""The pages, in the order of their tabs."""

from peft_compare.pages import adapters, diffusion, points, vision

PAGES = (vision, diffusion, points, adapters)
