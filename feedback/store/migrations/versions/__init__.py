"""One file a version; a published one never changes."""
