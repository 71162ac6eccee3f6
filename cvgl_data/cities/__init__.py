"""The city catalogue: polygons and a table, as package data."""
