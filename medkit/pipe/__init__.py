"""What travels through a shell pipe: lines, records, names of files; signals, and files written whole."""
