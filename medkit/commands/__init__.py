"""The core's own commands, one module each."""
