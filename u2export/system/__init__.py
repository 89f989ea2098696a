"""The machine and the operating system: files, caches, hardware, threads, processes."""
