"""Headwater beside its peers: ratios from one run on one machine."""
