"""One small reader per public data set, each in the data set's own layout."""
