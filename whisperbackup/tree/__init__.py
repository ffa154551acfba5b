"""The local tree: names, the walk, and the way of a restored file into it."""
