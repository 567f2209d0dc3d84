"""The tables of towers, a file a lineage; each ends with `TOWERS`."""
