"""One file per runtime; reached by entry point only."""
