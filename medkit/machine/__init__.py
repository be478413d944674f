"""What the machine offers: threads, memory, numeric precision."""
