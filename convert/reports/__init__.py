"""Reports on models and between them: sizes, statistics, differences, verification, certificates."""
