"""From features to distributions and values: one file per kind."""
