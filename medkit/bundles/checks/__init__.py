"""The checks of `medkit bundle verify` that run a bundle's code, in a process of their own."""
