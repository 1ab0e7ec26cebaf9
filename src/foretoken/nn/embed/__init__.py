"""From spaces to features."""
