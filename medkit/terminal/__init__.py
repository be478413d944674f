"""What people see on a terminal: bars of progress that all stages of a pipe share, and text above them."""
