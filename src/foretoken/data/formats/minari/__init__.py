"""Minari datasets: a folder with `metadata.json` and HDF5 or Arrow data, read and written without the minari package.

HDF5 (`main_data.hdf5`), one group per episode of n actions:

    episode_<i>/observations    (n + 1, ...), a group for Dict spaces; JPEG bytes for images where so encoded
    episode_<i>/actions         (n, ...)
    episode_<i>/{rewards, terminations, truncations}    (n,)
    episode_<i>/infos/...       (n + 1, ...) or (n, ...)       attributes: seed and other values per episode

Arrow or Parquet: one folder per episode, `<i>/*.arrow` of n + 1 rows, the last one padded beyond its observation.

Spaces come from the metadata. Infos become columns `infos/<name>`; texts (spaces and infos) are left out with a finding.
"""

from foretoken.data.formats.minari.reading import read, sniff
from foretoken.data.formats.minari.writing import write
