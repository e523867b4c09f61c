"""Turns per-utterance feature files into context windows, at memory speed."""
