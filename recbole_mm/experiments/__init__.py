"""Many runs: tables of models and searches for settings."""
