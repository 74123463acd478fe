"""Expected outcome of fusing: how many blocks are kept and how far the absorbed ones are moved."""
