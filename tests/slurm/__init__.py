"""Tests against a real Slurm that they start themselves on this machine."""
