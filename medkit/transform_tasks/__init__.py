"""The work of `medkit transform`: applying, composing, inverting, measuring, converting, describing transforms."""
