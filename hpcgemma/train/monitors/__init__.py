"""Monitors: how a model attends and how near its logits are to their caps, measured beside the training.

Read ``monitors.py`` first. ``attention.py`` and ``logits.py`` add up what a forward pass shows, ``reading.py`` makes
numbers of the sums, ``signs.py`` says what is wrong with them and what to do.
"""
