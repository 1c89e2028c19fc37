"""The laboratory: tasks, arms and seeds in one training loop, and an honest report of the outcome.

Reached from the command line as `infobatch compare` and `infobatch report`; needs the `lab`
extra. Nothing in the library proper imports it.
"""
