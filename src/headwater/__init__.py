"""The public names of Headwater, nothing else."""

__version__ = "0.1.0"
