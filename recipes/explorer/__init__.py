"""The terminal explorer: watch runs train, and look at what they measured. Needs no torch."""
