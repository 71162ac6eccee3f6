"""Readers: one file per layout on disk, each yields a `CrossViewDataset`.

A reader is a function ``read(folder, *, verify=False)`` and one line in `cvgl_data.dataset.READERS`.
"""
