"""Numbers as people see them: plots.py (pictures), html.py (pages), tables.py (text on a terminal)."""
