"""Starting glideins and pilots: by hand, by a batch system, and from a factory entry."""
