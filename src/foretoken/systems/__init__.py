"""The catalogue: one file per published system, by family. Found by file name; adding one edits nothing else."""
