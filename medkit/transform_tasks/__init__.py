"""The work of `medkit transform`: apply, compose, invert, convert and describe transforms, and measure Jacobians."""
