"""Ways to choose the next point of a search: one file each, found by looking."""
