"""The content of the store: keys, catalog, backups, the join with the tree, and the rules for deletion."""
