"""Model formats, one file each; a runner is found by the name of its file."""
