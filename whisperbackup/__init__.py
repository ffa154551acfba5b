"""Back up a tree of Graphite whisper files into durable storage, and bring any part of it back."""

__version__ = "1.0.0"
