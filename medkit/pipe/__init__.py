"""Shell pipes: lines, records and names of files that travel through them; signals; files written completely."""
