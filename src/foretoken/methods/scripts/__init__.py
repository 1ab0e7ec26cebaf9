"""Problems and their solutions written as tokens: one file each."""
