"""Each engine beside its bare client and FastStream, on the same real server: `make bench-engines`."""
