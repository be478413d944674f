"""Running the network of any MONAI bundle: its config, its weights, what it takes and gives, what fits into memory.

`medkit.runner` puts the parts together.
"""
