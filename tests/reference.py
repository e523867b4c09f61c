"""Slow, obvious truth: what the fast paths are held against."""
