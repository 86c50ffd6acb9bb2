"""Pipelines of diffusers, put together from trained parts."""
