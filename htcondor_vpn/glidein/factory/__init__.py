"""A factory's side: entries for sites whose nodes have no network, and what is missing in those that there are."""
