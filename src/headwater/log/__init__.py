"""The embedded durable log: one directory, many processes, no server."""
