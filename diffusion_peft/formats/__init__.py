"""Adapter files of other programs: low-rank adapters of denoisers, read and written."""
