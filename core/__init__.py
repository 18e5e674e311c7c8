"""kservekit: a KServe extension toolkit. Importing it does nothing; each room is imported by its own name."""

__version__ = "0.1.0"
