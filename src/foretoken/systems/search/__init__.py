"""Systems that search: they plan a whole way, or learn to, before they go it."""
