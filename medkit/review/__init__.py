"""`medkit report`: a page on which a person looks through the results of many cases and marks them.

Not to be confused with `medkit.run.report` (what a run prints) and `medkit.evaluation.report` (tables of scores).
"""
