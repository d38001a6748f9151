"""What is known of runs: the run folder, the index that finds it, and the state that follows from it."""
