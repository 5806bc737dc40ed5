"""Reports: finished runs, tables of runs and searches as one HTML file that needs nothing else."""
