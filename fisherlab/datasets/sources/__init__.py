"""Where the built-in data sets come from, one file a source."""
