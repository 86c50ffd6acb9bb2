"""Tests of the three packages, and the golden vectors they are held against."""
