"""What `dialects.documents` is made of: a direction a file, and what both ask."""
