"""`medkit doctor`: what medkit finds on this machine, also if a library or a plugin is broken."""
