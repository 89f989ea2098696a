"""Comparison of networks and pipelines: metrics, budgets, stages, emulated arithmetic."""
