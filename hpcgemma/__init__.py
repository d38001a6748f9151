"""hpcgemma submits and runs Gemma fine-tuning on Slurm clusters and never loses work."""

__version__ = "0.1.0"
