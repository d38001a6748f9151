"""What runs inside the allocation: it starts the ranks, watches them, and makes the run go on. Never imports torch."""
