"""An experiment over workloads, layers and seeds: what it covers, its cells, its rows and its record."""
