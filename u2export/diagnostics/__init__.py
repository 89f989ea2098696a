"""What this machine can do, and what an artifact really runs."""
