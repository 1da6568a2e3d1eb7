"""One training: the step, its window of rows, its checkpoints, its metrics and what stops it."""
