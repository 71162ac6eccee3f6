"""Build, curate and open cross-view geo-localization datasets."""

__version__ = "0.1.0"
