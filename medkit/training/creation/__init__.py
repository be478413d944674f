"""New bundles to train: of a network's architecture, or of another bundle."""
