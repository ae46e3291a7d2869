"""Public data sets and released weights by name: downloaded, checked, unpacked, laid out. Never on import."""
