"""Plain values: every experiment is one short file over `base.py`."""
