"""Records and rows: where they come from and how they lie on disk."""
