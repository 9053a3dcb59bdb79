"""What the scripts in datasets/ share: command line, parallel work on complete files, segments and their records."""
