"""Headwater in the frameworks of others; each is a module of its own, and imports its framework."""
