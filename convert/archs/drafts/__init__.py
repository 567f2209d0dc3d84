"""Models that draft for another: they read what its layers give, and most of them use its words."""
