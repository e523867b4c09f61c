"""What a person sees while a run trains: base.py (what every console offers), plain.py (lines), panel.py (a live
panel on a terminal), notebook.py (one cell), open.py (which of them this process gets)."""
