"""The engines: one broker, one place."""
