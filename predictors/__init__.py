"""KServe predictors: KServe in front, an engine behind."""
