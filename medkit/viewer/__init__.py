"""Volumes and their overlays to look at: in a browser by niivue, in a terminal, and as a picture."""
