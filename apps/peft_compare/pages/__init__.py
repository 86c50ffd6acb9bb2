"""The pages, in the order of their tabs."""

from peft_compare.pages import adapters, points, vision

PAGES = (vision, points, adapters)
