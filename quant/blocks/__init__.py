"""Families of block types, a file each: byte layout, encode, decode."""
