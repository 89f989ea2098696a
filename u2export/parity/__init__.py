"""Is the export the same function as its reference?"""
