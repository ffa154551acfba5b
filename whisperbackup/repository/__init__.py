"""What the store holds: keys, catalog, backups, the join with the tree, and what is deleted when."""
