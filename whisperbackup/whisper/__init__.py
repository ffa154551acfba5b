"""One whisper file: its format, reading it beside carbon, healing it."""
