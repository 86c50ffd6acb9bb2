"""Pictures with captions: folders of them, emoji, and words drawn when they are asked for."""
