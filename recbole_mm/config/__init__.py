"""The settings of a run: declarations, layers, YAML files, and the resolved configuration."""
