"""Learning methods that two or more systems use."""
