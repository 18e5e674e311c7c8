"""What KServe ignores, rewrites or refuses in anybody's files: documents in, findings out, and no cluster asked."""
