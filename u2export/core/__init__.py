"""What everything shares: names, models, requests, facts, artifacts, the contract of a backend."""
