"""One whisper file: its format, reading it while carbon writes, healing it."""
