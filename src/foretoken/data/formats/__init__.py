"""File formats: one reader and writer each; none imports the package that made the format."""
