"""Models of what actions lead to, for planning and imagining: one file per kind."""
