"""What a mount does in the background for its volume (format.md §17).

Every job may be killed at any point and started again by any client: each step is one script, and
what a killed step leaves is found by the next run of a job, here or elsewhere. Backing up the
metadata is not among them: `juicefs dump` does it.
"""
