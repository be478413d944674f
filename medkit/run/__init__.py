"""Running a task over many cases: planning, working, writing, reporting. `medkit.task` is its face."""
