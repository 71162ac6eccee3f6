"""Readers: one file per layout on disk, each yields a `CrossViewDataset`."""
