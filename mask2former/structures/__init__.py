"""Data structures: masks, run-length encodings, class tables, colors and tasks."""
