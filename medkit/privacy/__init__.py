"""Taking out of files what says whose they are: `medkit deidentify` (docs/privacy.md)."""
