"""Slurm, and the only place that speaks its vocabulary.

``commands`` builds command lines and parses what they print, ``reasons`` and ``refusals`` say in plain words
what Slurm means (all pure); ``client`` is the only file that runs a command.
"""
