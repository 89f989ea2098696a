"""One file or folder per runtime; imported by entry point only."""
