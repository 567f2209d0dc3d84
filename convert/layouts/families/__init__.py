"""Families of JSON documents, a file each: their layouts."""
