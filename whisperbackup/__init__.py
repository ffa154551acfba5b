"""Back up a tree of Graphite whisper files into durable storage, and restore any part of it."""

__version__ = "1.1.0"
