"""Job arrays: a frozen list of inputs in shards, one job for each, and what has become of every input."""
