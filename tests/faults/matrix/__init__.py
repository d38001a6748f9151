"""The fault matrix: each fault for real on a real Slurm, what it did to a run, and what that cost.

A scenario plays one fault; ``catalogue`` lists them all by the rows of the matrix. Run as
``python -m tests.faults.matrix --folder FOLDER``; ``tests/faults/test_matrix.py`` plays the quick ones.
"""
