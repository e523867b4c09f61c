"""What moves while a run trains, and its copies on disk.

state.py says what moves, checkpoint.py keeps it in a directory that is whole or absent, series.py knows which of a
run's checkpoints count and which are kept, mirror.py copies the newest to a second place.
"""
