"""`medkit evaluate`: one file for each kind of comparison."""
