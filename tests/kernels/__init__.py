"""Tests of `peft_kernels`."""
