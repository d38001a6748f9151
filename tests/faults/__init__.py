"""Trials by the hundred: what is killed, stopped or raced at random moments, and what is lost of it.

Each script goes on where it was interrupted: a trial's outcome is a line of a file below ``--folder``.
"""
