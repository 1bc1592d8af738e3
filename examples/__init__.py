"""Programs and job specs to begin with."""
