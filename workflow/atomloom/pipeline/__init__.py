"""What the stages share: the plan, paths of all files, quarantine, run cards, progress."""
