"""Whether the code of a bundle may run: trust by content, and what an audit finds in configs and weights."""
