"""Turns context windows into phonemes: trains, resumes, evaluates and explains frame classifiers."""
