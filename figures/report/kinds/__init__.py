"""From records to sections of a report, one file per kind of record."""
