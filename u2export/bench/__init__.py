"""Fair measurement: workers that take turns, statistics that know their noise, and reports."""
