"""Shared code of the scripts in datasets/: command line, parallel work on files, segments and their records."""
