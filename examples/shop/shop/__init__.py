"""A shop whose background work follows its data."""
