"""The local tree: names, the walk, selection, and writing restored files."""
