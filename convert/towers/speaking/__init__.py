"""Tables of towers that speak: what makes sound of what a text model gives."""
