"""The machine: threads, memory, devices and numeric precision."""
