"""Pictures on demand: one warm process that holds a pipeline and trained adapters, asked by the server as JSON."""
