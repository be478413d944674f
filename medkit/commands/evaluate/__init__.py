"""`medkit evaluate`: one module for each kind of comparison."""
