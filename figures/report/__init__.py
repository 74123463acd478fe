"""One self-contained page from result records: the answer first, then tables and figures."""
