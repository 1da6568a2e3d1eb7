"""The mathematics: per-token losses, heads and chunks, and the objective that adds them up."""
