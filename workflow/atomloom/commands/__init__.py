"""Commands beside the stages: prediction, tuning of a run, cost, inspection and care of a store."""
