"""Everything that calls Ray: stages of the artifact store, training on several workers, trials of a search."""
