"""The pages, in the order of their tabs."""

from peft_compare.pages import vision

PAGES = (vision,)
