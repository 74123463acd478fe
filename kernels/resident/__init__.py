"""Incremental use: pools of blocks with reference counts that requests enter, grow in, fuse in and leave."""
