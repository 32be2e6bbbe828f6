"""Benchmarks that compare event loops: see README.md beside this file."""
