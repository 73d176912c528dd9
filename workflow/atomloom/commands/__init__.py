"""Commands besides the stages: prediction, tuning of a run, cost, inspection, maintenance of a store."""
