"""From weights to a published artifact."""
