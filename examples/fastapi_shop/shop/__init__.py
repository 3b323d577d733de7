"""A shop that reserves what is ordered."""
