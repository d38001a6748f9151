"""Rows as users have them: files of many kinds, what their rows mean, and what is wrong with some. No torch, no numpy.

The launcher looks at the first rows with it before a job is queued; the trainer's preparation reads all of them.
"""
