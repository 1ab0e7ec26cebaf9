"""What a policy may be asked for: one file each."""
