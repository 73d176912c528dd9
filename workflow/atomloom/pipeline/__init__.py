"""Common parts of the stages: the plan, paths of all files, quarantine, run cards, progress."""
