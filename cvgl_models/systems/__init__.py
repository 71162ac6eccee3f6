"""Systems: one trainable method of the literature per file."""
