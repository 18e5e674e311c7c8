"""Real servers as local processes: Triton, and predictors and transformers as they are in a cluster."""
