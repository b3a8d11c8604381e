"""Training: recipe, loop, optimiser, checkpoints, run folder, comparison of runs, progress display."""
