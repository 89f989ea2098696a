"""Fair measurement: latency, memory, throughput, and whether the mask is right."""
